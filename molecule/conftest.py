"""What the scenarios' tests share: the cluster that `default` made, seen through kubectl by testinfra's local backend.

Run by `molecule verify`, or directly after `molecule converge`: ``pytest molecule/<scenario>/tests``.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from typing import Any

import pytest
import testinfra
from testinfra.host import Host

from testbed import cluster

Kubectl = Callable[..., Any]


@pytest.fixture(scope="session")
def host() -> Host:
    """The machine itself: a cluster is reached through its API, not through a connection."""
    return testinfra.get_host("local://")


@pytest.fixture(scope="session")
def kubectl(host: Host) -> Kubectl:
    """``kubectl("get", "storageclass", "fast")`` returns the parsed JSON; anything but `get` returns the text."""
    running = cluster.cluster("molecule")

    def run(*arguments: str) -> Any:
        output = ["-o", "json"] if arguments[0] == "get" else []
        text = host.check_output(shlex.join(running.command(*arguments, *output)))
        return json.loads(text) if output else text

    return run

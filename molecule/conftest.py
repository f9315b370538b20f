"""Fixtures of the scenarios' tests: the cluster that `default` made, read with kubectl on testinfra's local backend.

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
    """Return this machine, because a cluster is reached through its API and not through a connection."""
    return testinfra.get_host("local://")


@pytest.fixture(scope="session")
def kubectl(host: Host) -> Kubectl:
    """Return a function that runs kubectl. It returns parsed JSON for `get`, and the text for other commands."""
    running = cluster.cluster("molecule")

    def run(*arguments: str) -> Any:
        output = ["-o", "json"] if arguments[0] == "get" else []
        text = host.check_output(shlex.join(running.command(*arguments, *output)))
        return json.loads(text) if output else text

    return run

"""A scenario's converge has made what its objects.yml says: a value for each place (testkit/facts.py), written by hand.

`molecule verify` runs this in the folder of the scenario. The host is this machine, because a cluster has an API.
"""

import base64
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import testinfra
import yaml

from testbed import cluster
from testkit.facts import wrong

OBJECTS = yaml.safe_load(Path("objects.yml").read_text())


def find(name: str) -> Any:
    """Return an object by its `Kind/name` or `Kind/namespace/name`, with a Secret's data as texts."""
    kind, *namespace, own = name.split("/")
    where = [f"--namespace={each}" for each in namespace]
    get = ("get", kind, own, *where, "--output=json", "--show-managed-fields")
    text = testinfra.get_host("local://").check_output(shlex.join(cluster.cluster("molecule").command(*get)))
    found = json.loads(text)
    if kind == "Secret":
        found["data"] = {key: base64.b64decode(value).decode() for key, value in found["data"].items()}
    return found


@pytest.mark.parametrize("name", OBJECTS)
def test_object(name: str) -> None:
    assert wrong(find, {name: OBJECTS[name]}) == []

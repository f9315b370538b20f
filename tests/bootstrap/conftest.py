"""Fixtures that run the playbooks as a user does, on embedded clusters, with their files in a temporary folder."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed import cluster
from testbed.cluster import Cluster
from testkit.playbooks import Project

# Fields that the API server or a controller sets, so that they may differ between two runs.
VOLATILE = ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields", "ownerReferences")


def objects(where: Cluster, manager: str = "nativelink-gitops") -> dict[str, Any]:
    """Return the objects of our field manager, by kind, namespace and name, without fields that differ between runs."""
    kinds = where.run("api-resources", "--verbs=list", "-o", "name").split()
    kinds = sorted({kind for kind in kinds if not kind.startswith("events")})
    text = where.run("get", ",".join(kinds), "-A", "-o", "json", "--show-managed-fields", "--ignore-not-found")
    found: dict[str, Any] = {}
    for item in json.loads(text or '{"items": []}')["items"]:
        metadata = item["metadata"]
        fields = [entry["fieldsV1"] for entry in metadata.get("managedFields", ()) if entry["manager"] == manager]
        if not fields or "ttlSecondsAfterFinished" in item.get("spec", {}):  # this Job is removed when it has completed
            continue
        item.pop("status", None)
        if item["kind"] == "Secret":
            item["data"] = sorted(item.get("data", {}))
        for key in ("clusterIP", "clusterIPs", "healthCheckNodePort"):
            item.get("spec", {}).pop(key, None)
        for port in item.get("spec", {}).get("ports", ()) if item["kind"] == "Service" else ():
            port.pop("nodePort", None)
        for key in VOLATILE:
            metadata.pop(key, None)
        name = f"{item['kind']} {metadata.get('namespace', '')}/{metadata['name']}"
        found[name] = {"fields": fields, "object": item}
    return found


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Return an empty project on the Ansible that runs the tests."""
    return Project(tmp_path)


@pytest.fixture
def embedded() -> Iterator[Callable[[str], Cluster]]:
    """Return a function: ``embedded("name")`` starts a fresh cluster of that name, which is stopped after the test."""
    with contextlib.ExitStack() as started:
        yield lambda name: started.enter_context(cluster.fresh(name))

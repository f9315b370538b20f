"""The trees of a run: the committed ones, and those of generated inventories."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible_collections.nativelink.gitops.plugins.plugin_utils import render
from ansible_collections.nativelink.gitops.plugins.plugin_utils.versions import row
from hypothesis import HealthCheck, Phase, given, settings

from conformance.workloads import Tree
from testbed.images import NATIVELINK
from testkit.inventories import inventories
from testkit.playbooks import run_playbook
from testkit.trees import files_of, values_of

INVENTORIES = ("inventories/local", "inventories/reference")
# These override the inventory of a version for which the validation refuses the Redis backend.
_MEMORY = {"nativelink_scheduler_backend": "memory", "nativelink_scheduler_replicas": 1}


def trees(clusters: Path, version: str, generated: int) -> Iterator[tuple[str, Tree]]:
    """Return every tree of a version by its name: those of a folder of clusters, and those of generated inventories.

    Clusters of another version are rendered again for this one if their inventory is known; otherwise their tree is
    empty. AssertionError with the playbook's output if rendering fails.
    """
    others = []
    for rendered in sorted(clusters.glob("*/rendered")):
        tree = files_of(rendered)
        if f"{NATIVELINK}:{version}" in tree["cas/statefulset.yaml"]:
            yield rendered.parent.name, tree
        else:
            others.append(rendered.parent.name)
    if others:
        yield from _rendered(version, others)
    for number, variables in enumerate(variables_of(version, generated)):
        yield f"generated-{number:02}", render.tree(values_of(f"generated-{number:02}", **variables))


def _rendered(version: str, clusters: list[str]) -> Iterator[tuple[str, Tree]]:
    """Render committed clusters for a version with the playbook, and return their trees."""
    stated = {"nativelink_version": version, **({} if row(version).redis_backend else _MEMORY)}
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        # As JSON, because NAME=VALUE is always text.
        extra = json.dumps({**stated, "nativelink_clusters_dir": folder})
        for inventory in INVENTORIES:
            done = run_playbook("render", inventory, f"-e{extra}")
            assert done.status == 0, done.output
        for cluster in clusters:
            yield f"{cluster} (again)", files_of(Path(folder) / cluster / "rendered")


def variables_of(version: str, number: int) -> list[dict[str, Any]]:
    """Generate the variables of this many clusters, the same ones each time. The validation accepts all of them."""
    found: list[dict[str, Any]] = []
    quietly = {"deadline": None, "phases": [Phase.generate], "suppress_health_check": list(HealthCheck)}

    @settings(max_examples=number or 1, derandomize=True, database=None, **quietly)
    @given(inventories())
    def collect(variables: dict[str, Any]) -> None:
        refused = variables.get("nativelink_scheduler_backend") == "redis" and not row(version).redis_backend
        found.append(variables | {"nativelink_version": version} | (_MEMORY if refused else {}))

    if number:
        collect()
    return found

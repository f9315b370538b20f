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
from testkit.trees import values_of

INVENTORIES = ("inventories/local", "inventories/reference")
_IN_MEMORY = {"nativelink_scheduler_backend": "memory", "nativelink_scheduler_replicas": 1}


class TreeError(Exception):
    """A tree could not be rendered. The message is the playbook's output."""


def trees(clusters: Path, version: str, generated: int) -> Iterator[tuple[str, Tree]]:
    """Return every tree of a version by its name: those of a folder of clusters, and those of generated inventories.

    Clusters of another version are rendered again for this one if their inventory is known; otherwise their tree is
    empty. TreeError if rendering fails.
    """
    others = []
    for rendered in sorted(clusters.glob("*/rendered")):
        tree = _read(rendered)
        if f"{NATIVELINK}:{version}" in tree["cas/statefulset.yaml"]:
            yield rendered.parent.name, tree
        else:
            others.append(rendered.parent.name)
    if others:
        yield from _rendered(version, others)
    for number, variables in enumerate(variables_of(version, generated)):
        yield f"generated-{number:02}", render.tree(values_of(f"generated-{number:02}", **variables))


def _read(rendered: Path) -> Tree:
    files = (path for path in sorted(rendered.rglob("*")) if path.is_file())
    return {str(path.relative_to(rendered)): path.read_text() for path in files}


def _rendered(version: str, clusters: list[str]) -> Iterator[tuple[str, Tree]]:
    """Render committed clusters for a version with the playbook, and return their trees."""
    stated = {"nativelink_version": version, **_older(version)}
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        # As JSON, because NAME=VALUE is always text.
        extra = json.dumps({**stated, "nativelink_clusters_dir": folder})
        for inventory in INVENTORIES:
            done = run_playbook("render", inventory, f"-e{extra}")
            if done.status:
                raise TreeError(f"{inventory} for {version}: {done.output[-4000:]}")
        for cluster in clusters:
            yield f"{cluster} (again)", _read(Path(folder) / cluster / "rendered")


def _older(version: str) -> dict[str, Any]:
    """What overrides the inventory, because the validation refuses the Redis backend for this version."""
    return {} if row(version).redis_backend else _IN_MEMORY


def variables_of(version: str, number: int) -> list[dict[str, Any]]:
    """Generate the variables of this many clusters, the same ones each time. The validation accepts all of them."""
    found: list[dict[str, Any]] = []
    if number == 0:
        return found

    @settings(
        max_examples=number,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(inventories())
    def collect(variables: dict[str, Any]) -> None:
        older = _older(version) if variables.get("nativelink_scheduler_backend") == "redis" else {}
        found.append(variables | {"nativelink_version": version} | older)

    collect()
    return found

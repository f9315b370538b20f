"""The trees of a run: the committed ones, and those of generated inventories."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from ansible_collections.nativelink.gitops.plugins.plugin_utils import render
from ansible_collections.nativelink.gitops.plugins.plugin_utils.versions import row
from hypothesis import HealthCheck, Phase, given, settings

from conformance.workloads import Tree
from hack.chart.values import reference
from testbed.images import NATIVELINK
from testkit.inventories import inventories
from testkit.trees import Values, files_of, values_of

INVENTORIES = ("local", "reference")
# These override the inventory of a version for which the validation refuses the Redis backend, or its object store.
_MEMORY = {"nativelink_scheduler_backend": "memory", "nativelink_scheduler_replicas": 1}
_VOLUMES = {"nativelink_cas_store": "volumes", "nativelink_cas_max_replicas": 0}


def trees(clusters: Path, version: str, generated: int) -> Iterator[tuple[str, Tree]]:
    """Return every tree of a version by its name: those of a folder of clusters, and those of generated inventories.

    Clusters of another version are rendered again for this one if their inventory is known; otherwise their tree is
    empty.
    """
    stated = {"nativelink_version": version, **({} if row(version).redis_backend else _MEMORY)}
    for rendered in sorted(clusters.glob("*/rendered")):
        name, tree = rendered.parent.name, files_of(rendered)
        if f"{NATIVELINK}:{version}" in tree["cas/statefulset.yaml"]:
            yield name, tree
        else:
            yield f"{name} (again)", render.tree(_known()[name] | stated) if name in _known() else {}
    for number, variables in enumerate(variables_of(version, generated)):
        yield f"generated-{number:02}", render.tree(values_of(f"generated-{number:02}", **variables))


@cache
def _known() -> dict[str, Values]:
    return {cluster: values for inventory in INVENTORIES for cluster, values in reference(inventory).items()}


def variables_of(version: str, number: int) -> list[dict[str, Any]]:
    """Generate the variables of this many clusters, the same ones each time. The validation accepts all of them."""
    found: list[dict[str, Any]] = []
    quietly = {"deadline": None, "phases": [Phase.generate], "suppress_health_check": list(HealthCheck)}

    @settings(max_examples=number or 1, derandomize=True, database=None, **quietly)
    @given(inventories())
    def collect(variables: dict[str, Any]) -> None:
        known = row(version)
        refused = variables.get("nativelink_scheduler_backend") == "redis" and not known.redis_backend
        provider, identity = (variables.get(f"nativelink_object_store_{name}") for name in ("provider", "identity"))
        store = {} if identity in known.object_stores.get(provider, ()) else _VOLUMES
        found.append(variables | {"nativelink_version": version} | (_MEMORY if refused else {}) | store)

    if number:
        collect()
    return found

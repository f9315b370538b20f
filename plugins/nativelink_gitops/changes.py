"""Refuses changes that would break a running cluster: what the inventory would render, against the committed tree."""

from __future__ import annotations

import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from nativelink_gitops.quantities import bytes_of
from nativelink_gitops.validate import Fault

STATEFULSET = "rendered/cas/statefulset.yaml"
# All that the API server lets an update of a StatefulSet change.
_MUTABLE = {
    "minReadySeconds",
    "ordinals",
    "persistentVolumeClaimRetentionPolicy",
    "replicas",
    "revisionHistoryLimit",
    "template",
    "updateStrategy",
}

Object = Mapping[str, Any]


def refused(clusters: Mapping[str, Mapping[str, Any]], changes: Mapping[str, Mapping[str, Fault]]) -> list[Fault]:
    """The faults of the changes that nobody has allowed by name."""
    return sorted(
        fault
        for cluster, found in changes.items()
        for name, fault in found.items()
        if name not in clusters[cluster]["nativelink_allow_changes"]
    )


def notices(values: Mapping[str, Any], changes: Mapping[str, Fault]) -> list[str]:
    """Permissions of one cluster that outlived their change: the next one of that name would be let through."""
    return [
        f"nativelink_allow_changes: {name} is allowed, and nothing changes it; take it out"
        for name in values["nativelink_allow_changes"]
        if name not in changes
    ]


def _rendered(values: Mapping[str, Any]) -> Object:
    from nativelink_gitops import render  # not loaded where nothing is committed yet

    return render.statefulset(values)


def breaking_changes(
    clusters: Mapping[str, Mapping[str, Any]], statefulset: Callable[[Mapping[str, Any]], Object] = _rendered
) -> dict[str, dict[str, Fault]]:
    """What would break each of `clusters` (effective values, without static faults), by the name that allows it.

    `statefulset` renders a cluster's CAS StatefulSet; it is called for clusters with a committed tree only.
    """
    folders = defaultdict(list)
    for cluster, values in clusters.items():
        folders[Path(values["nativelink_clusters_dir"])].append(cluster)
    found: dict[str, dict[str, Fault]] = {cluster: {} for cluster in clusters}
    for folder, names in folders.items():
        for cluster, text in _committed(folder, names).items():
            before = yaml.load(text, yaml.CSafeLoader)
            found[cluster] = _changes(cluster, before, statefulset(clusters[cluster]))
    return found


def _changes(cluster: str, before: Object, after: Object) -> dict[str, Fault]:
    """The breaking changes between two StatefulSets, by the name that allows each."""
    found = {}

    def add(change: str, variable: str, problem: str, procedure: str) -> None:
        found[change] = Fault(
            cluster, variable, problem, f"{procedure}, and add {change} to nativelink_allow_changes for that time"
        )

    old, new = before["spec"], after["spec"]
    if old["replicas"] != new["replicas"]:
        add(
            "cas_replicas",
            "nativelink_cas_replicas",
            f"{old['replicas']} shards in the committed tree would become {new['replicas']}, which moves the keys: "
            "cached results are lost",
            "accept a cache flush",
        )
    old_claim, new_claim = (spec["volumeClaimTemplates"][0]["spec"] for spec in (old, new))
    old_size, new_size = (claim["resources"]["requests"]["storage"] for claim in (old_claim, new_claim))
    namespace = before["metadata"].get("namespace", "")
    name = before["metadata"]["name"]
    orphan = f"delete the StatefulSet with `kubectl -n {namespace} delete statefulset {name} --cascade=orphan`, sync"
    if bytes_of(old_size) < bytes_of(new_size):
        add(
            "cas_volume_size",
            "nativelink_cas_volume_size",
            f"{old_size} in the committed tree would become {new_size}, and a StatefulSet cannot change it",
            f"grow each PersistentVolumeClaim to {new_size}, {orphan}",
        )
    elif bytes_of(old_size) > bytes_of(new_size):
        add(
            "cas_volume_size",
            "nativelink_cas_volume_size",
            f"{old_size} in the committed tree would become {new_size}, and a volume cannot shrink",
            "accept a cache flush: delete the StatefulSet and its PersistentVolumeClaims, sync",
        )
    old_class, new_class = (claim.get("storageClassName") for claim in (old_claim, new_claim))
    if old_class != new_class:
        add(
            "cas_storage_class",
            "nativelink_cas_storage_class",
            f"{old_class} in the committed tree would become {new_class}, and a volume cannot change its class",
            "accept a cache flush: delete the StatefulSet and its PersistentVolumeClaims, sync",
        )
    new_namespace = after["metadata"].get("namespace", "")
    if namespace != new_namespace:
        add(
            "cas_immutable",
            "nativelink_namespace",
            f"the CAS would move from {namespace} to {new_namespace}, where its volumes are new: the cache is lost",
            "accept a cache flush",
        )
    elif changed := _immutable(old, new):
        add(
            "cas_immutable",
            "nativelink_cas_replicas",
            f"{', '.join(changed)} of the CAS StatefulSet would change, and the API server refuses that",
            orphan,
        )
    return found


def _immutable(old: Object, new: Object) -> list[str]:
    """The fields of two specs that cannot change and have."""
    changed = []
    for key in sorted({*old, *new} - _MUTABLE):
        pair = [old.get(key), new.get(key)]
        if key == "volumeClaimTemplates":
            pair = [[_claim(template) for template in templates or ()] for templates in pair]
        if pair[0] != pair[1]:
            changed.append(key)
    return changed


def _claim(template: Object) -> Object:
    """A claim without what has a name of its own among the changes."""
    spec = {key: value for key, value in template["spec"].items() if key not in ("storageClassName", "resources")}
    return {**template, "spec": spec}


def _committed(folder: Path, clusters: Iterable[str]) -> dict[str, str]:
    """Each cluster's StatefulSet as HEAD has it; outside of Git, or where it isn't committed, as it is on disk."""
    found = {}
    paths = {cluster: f"{cluster}/{STATEFULSET}" for cluster in clusters}
    blobs = _git_blobs(folder, paths.values()) if folder.is_dir() else {}
    for cluster, path in paths.items():
        file = folder / path
        if path in blobs:
            found[cluster] = blobs[path]
        elif file.is_file():
            found[cluster] = file.read_text()
    return found


def _git_blobs(folder: Path, paths: Iterable[str]) -> dict[str, str]:
    """The files at `paths` below `folder` in HEAD: one process for all of them."""
    names = list(paths)
    try:
        answer = subprocess.run(
            ["git", "cat-file", "--batch"],
            cwd=folder,
            input="".join(f"HEAD:./{name}\n" for name in names).encode(),
            capture_output=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}  # no Git, or no repository
    blobs = {}
    for name in names:
        header, _, answer = answer.partition(b"\n")
        if header.endswith(b" missing"):
            continue
        size = int(header.split()[-1])
        blobs[name] = answer[:size].decode()
        answer = answer[size + 1 :]
    return blobs

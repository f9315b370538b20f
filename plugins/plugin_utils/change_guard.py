"""Refuses changes that would break a running cluster: what the inventory would render, against the committed tree."""

from __future__ import annotations

import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .findings import Finding
from .quantities import bytes_of

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
Changes = Mapping[str, list[Finding]]
"""One cluster's breaking changes, by the name that allows them."""


@dataclass(frozen=True)
class _Workload:
    """A StatefulSet of the tree: its template, the prefix of its variables, the names that allow its changes."""

    template: str
    prefix: str
    volume_size: str
    storage_class: str
    immutable: str
    loss: str  # of its volumes

    @property
    def file(self) -> str:
        return f"rendered/{self.template}"


CAS = _Workload(
    template="cas/statefulset.yaml",
    prefix="nativelink_cas",
    volume_size="cas_volume_size",
    storage_class="cas_storage_class",
    immutable="cas_immutable",
    loss="accept a cache flush",
)
REDIS = _Workload(
    template="scheduler/redis-statefulset.yaml",
    prefix="nativelink_redis",
    volume_size="redis_immutable",
    storage_class="redis_immutable",
    immutable="redis_immutable",
    loss="accept that the queue is lost and its builds start again",
)


def refused(clusters: Mapping[str, Mapping[str, Any]], changes: Mapping[str, Changes]) -> list[Finding]:
    """The faults of the changes that nobody has allowed by name."""
    return sorted(
        fault
        for cluster, found in changes.items()
        for name, faults in found.items()
        if name not in clusters[cluster]["nativelink_allow_changes"]
        for fault in faults
    )


def notices(values: Mapping[str, Any], changes: Changes) -> list[str]:
    """Permissions of one cluster that outlived their change: the next one of that name would be let through."""
    return [
        f"nativelink_allow_changes: {name} is allowed, and nothing changes it; take it out"
        for name in values["nativelink_allow_changes"]
        if name not in changes
    ]


def _rendered(values: Mapping[str, Any], template: str) -> Object | None:
    from . import render  # not loaded where nothing is committed yet

    return render.parsed(values, template)


def breaking_changes(
    clusters: Mapping[str, Mapping[str, Any]],
    statefulset: Callable[[Mapping[str, Any], str], Object | None] = _rendered,
) -> dict[str, Changes]:
    """What would break each of `clusters` (effective values, without static faults), by the name that allows it.

    `statefulset` renders the StatefulSet of a template, or None where the cluster has none; it is called for those
    that the committed tree has.
    """
    folders = defaultdict(list)
    for cluster, values in clusters.items():
        folders[Path(values["nativelink_clusters_dir"])].append(cluster)
    found: dict[str, dict[str, list[Finding]]] = {cluster: defaultdict(list) for cluster in clusters}
    for folder, names in folders.items():
        paths = {f"{cluster}/{workload.file}": (cluster, workload) for cluster in names for workload in (CAS, REDIS)}
        for path, text in _committed(folder, paths).items():
            cluster, workload = paths[path]
            before, after = yaml.load(text, yaml.CSafeLoader), statefulset(clusters[cluster], workload.template)
            for name, *words in _changes(workload, before, after) if after else ():
                found[cluster][name].append(Finding(cluster, *words))
    return {cluster: dict(changes) for cluster, changes in found.items()}


def _changes(workload: _Workload, before: Object, after: Object) -> Iterator[tuple[str, str, str, str]]:
    """The breaking changes between two StatefulSets: the name that allows each, variable, problem and fix."""
    old_namespace, new_namespace = (each["metadata"].get("namespace", "") for each in (before, after))
    if old_namespace != new_namespace and workload is CAS:
        yield (
            workload.immutable,
            "nativelink_namespace",
            f"the CAS would move from {old_namespace} to {new_namespace}, where its volumes are new: the cache is lost",
            f"{workload.loss}: {_allow(workload.immutable)}, run bootstrap and push",
        )
    old, new = before["spec"], after["spec"]
    if old["replicas"] != new["replicas"] and workload is CAS:
        yield (
            "cas_replicas",
            "nativelink_cas_replicas",
            f"{old['replicas']} shards in the committed tree would become {new['replicas']}, which moves the keys: "
            "cached results are lost, and the scheduler and all workers, which address the shards, are replaced",
            f"{workload.loss}: {_allow('cas_replicas')}, render and push",
        )
    if old_namespace != new_namespace:
        return  # everything is made anew there
    old_claim, new_claim = (spec["volumeClaimTemplates"][0]["spec"] for spec in (old, new))
    old_size, new_size = (claim["resources"]["requests"]["storage"] for claim in (old_claim, new_claim))
    anew = "delete the StatefulSet and its PersistentVolumeClaims"
    orphan = "delete the StatefulSet with --cascade=orphan"
    if bytes_of(old_size) != bytes_of(new_size):
        grows = bytes_of(old_size) < bytes_of(new_size)
        why = "a StatefulSet cannot change it" if grows else "a volume cannot shrink"
        step = f"grow each PersistentVolumeClaim to {new_size}, {orphan}" if grows else anew
        yield (
            workload.volume_size,
            f"{workload.prefix}_volume_size",
            f"{old_size} in the committed tree would become {new_size}, and {why}",
            _procedure(workload.volume_size, step, "" if grows else workload.loss),
        )
    old_class, new_class = (claim.get("storageClassName") for claim in (old_claim, new_claim))
    if old_class != new_class:
        yield (
            workload.storage_class,
            f"{workload.prefix}_storage_class",
            f"{old_class} in the committed tree would become {new_class}, and a volume cannot change its class",
            _procedure(workload.storage_class, anew, workload.loss),
        )
    if changed := _immutable(old, new):
        yield (
            workload.immutable,
            workload.file,
            f"{', '.join(changed)} of the StatefulSet would change, and the API server refuses that",
            _procedure(workload.immutable, orphan),
        )


def _allow(name: str) -> str:
    return f"add {name} to nativelink_allow_changes for that time"


def _procedure(name: str, step: str, loss: str = "") -> str:
    """How to make a change that the API server refuses.

    A GitOps engine makes a StatefulSet that is deleted again from what it has last seen, so it may not run meanwhile.
    """
    start = f"{loss}: {_allow(name)}" if loss else _allow(name)
    return f"{start}, render, suspend the GitOps engine, {step}, push, resume the engine (commands: docs/changes.md)"


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


def _committed(folder: Path, paths: Iterable[str]) -> dict[str, str]:
    """Those of `paths` below `folder` that are in HEAD; outside of Git, those on disk.

    In a repository nothing else counts: no cluster has what was rendered and never committed.
    """
    if not folder.is_dir():
        return {}
    blobs = _git_blobs(folder, paths)
    if blobs is None:
        return {path: (folder / path).read_text() for path in paths if (folder / path).is_file()}
    return blobs


def _git_blobs(folder: Path, paths: Iterable[str]) -> dict[str, str] | None:
    """The files at `paths` below `folder` in HEAD, by one process for all of them; None outside of a repository."""
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
        return None  # or no Git at all
    blobs = {}
    for name in names:
        header, _, answer = answer.partition(b"\n")
        if header.endswith(b" missing"):
            continue
        size = int(header.split()[-1])
        blobs[name] = answer[:size].decode()
        answer = answer[size + 1 :]
    return blobs

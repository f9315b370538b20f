"""Refuses changes that would break a running cluster: compares what would be rendered with the committed tree."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml

from . import committed
from .findings import Finding
from .layout import Layout, layout, layout_of, moved, parsed
from .quantities import bytes_of

# All that the API server lets an update of a StatefulSet change.
_MUTABLE = {
    *("minReadySeconds", "ordinals", "persistentVolumeClaimRetentionPolicy", "replicas", "revisionHistoryLimit"),
    *("template", "updateStrategy"),
}
Object = Mapping[str, Any]
_SHARDS = "rendered/cas/cas.json5"


@dataclass
class Changes:
    """One cluster's breaking changes by the name that allows them, its faults, and notices of what was not compared."""

    breaking: dict[str, list[Finding]] = field(default_factory=lambda: defaultdict(list))
    faults: list[Finding] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Workload:
    """A StatefulSet of the tree: its template, the prefix of its variables, the names that allow its changes."""

    template: str
    prefix: str
    volume_size: str
    storage_class: str
    immutable: str
    loss: str  # what the user accepts who loses its volumes

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
    """The faults, and the breaking changes that `nativelink_allow_changes` does not name."""
    forbidden = (
        fault
        for cluster, found in changes.items()
        for name, faults in found.breaking.items()
        if name not in clusters[cluster]["nativelink_allow_changes"]
        for fault in faults
    )
    return sorted([*(fault for found in changes.values() for fault in found.faults), *forbidden])


def notices(values: Mapping[str, Any], changes: Changes) -> list[str]:
    """Return what could not be compared, and the permissions of one cluster that no change needs any longer.

    Such a permission would let the next change of its name through. With a broken file, no permission is known to be
    without use.
    """
    return changes.unknown or [
        f"nativelink_allow_changes: {name} is allowed, but no longer needed; remove it"
        for name in values["nativelink_allow_changes"]
        if name not in changes.breaking
    ]


def breaking_changes(
    clusters: Mapping[str, Mapping[str, Any]], statefulset: Callable[[Mapping[str, Any], str], Object | None]
) -> dict[str, Changes]:
    """Return the changes that would break `clusters`, which maps names to effective values without static faults.

    `statefulset` renders the StatefulSet of a template, or returns None where the cluster has none; it is called for
    the templates whose file is committed.
    """
    trees = defaultdict(list)
    for cluster, values in clusters.items():
        trees[Path(values["nativelink_clusters_dir"]), values["nativelink_base_revision"]].append(cluster)
    found = {cluster: Changes() for cluster in clusters}
    for (folder, revision), names in trees.items():
        paths = {f"{cluster}/{workload.file}": (cluster, workload) for cluster in names for workload in (CAS, REDIS)}
        lists = {f"{cluster}/{_SHARDS}": cluster for cluster in names}
        try:
            texts = committed.read(folder, [*paths, *lists], revision)
        except committed.UnknownRevisionError as unknown:
            for cluster in names:
                remedy = "fetch it, or write another branch, tag or commit"
                found[cluster].faults.append(Finding(cluster, "nativelink_base_revision", str(unknown), remedy))
            continue
        for path, text in texts.items():
            if path in lists:
                for words in _moves(parsed(text.decode(errors="replace")), layout_of(clusters[lists[path]])):
                    found[lists[path]].breaking["cas_replicas"].append(Finding(lists[path], *words))
                continue
            cluster, workload = paths[path]
            if not (rendered := statefulset(clusters[cluster], workload.template)):
                continue
            try:
                before = _StatefulSet.parsed(text)
            except _Broken as broken:
                found[cluster].unknown.append(
                    f"{workload.file}: the committed file {broken}, so that breaking changes cannot be found; "
                    "rendering repairs it: compare the new file with the running StatefulSet before you push"
                )
                continue
            for name, *words in _changes(workload, before, _StatefulSet.of(rendered)):
                found[cluster].breaking[name].append(Finding(cluster, *words))
    return found


class _Broken(Exception):
    """A text that is not a StatefulSet; the message says what it is instead."""


@dataclass(frozen=True)
class _StatefulSet:
    """Return the parts of a StatefulSet that are compared."""

    namespace: str
    store: str  # nativelink_cas_store
    size: str
    storage_class: str | None
    immutable: Object  # all fields that cannot change and have no name of their own among the changes

    @classmethod
    def parsed(cls, text: bytes) -> Self:
        """Raises _Broken."""
        if re.search(rb"^(<{7}|>{7})( |$)", text, re.MULTILINE):
            raise _Broken("has conflict markers of a merge")
        try:
            item = yaml.load(text, yaml.CSafeLoader)
        except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist, for example
            raise _Broken("is not valid YAML") from error
        if item is None:
            raise _Broken("is empty")
        if not isinstance(item, dict):
            raise _Broken(f"holds a {'list' if isinstance(item, list) else 'plain value'} instead of an object")
        if item.get("kind") != "StatefulSet":
            raise _Broken(f"is of the kind {item.get('kind')} instead of StatefulSet")
        try:
            return cls.of(item)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise _Broken("is not a complete StatefulSet") from error

    @classmethod
    def of(cls, item: Object) -> Self:
        """From an object that has all that is compared."""
        spec = item["spec"]
        claim = spec["volumeClaimTemplates"][0]["spec"]
        size = claim["resources"]["requests"]["storage"]
        bytes_of(size)  # raises for what is not a size
        immutable = {key: value for key, value in spec.items() if key not in _MUTABLE}
        immutable["volumeClaimTemplates"] = [_claim(template) for template in spec["volumeClaimTemplates"]]
        return cls(
            namespace=item["metadata"].get("namespace", ""),
            store=item["metadata"].get("annotations", {}).get("nativelink-gitops/store", "volumes"),
            size=size,
            storage_class=claim.get("storageClassName"),
            immutable=immutable,
        )


def _changes(workload: _Workload, old: _StatefulSet, new: _StatefulSet) -> Iterator[tuple[str, str, str, str]]:
    """The breaking changes between two StatefulSets: the name that allows each, variable, problem and fix."""
    if old.namespace != new.namespace and workload is CAS:
        yield (
            workload.immutable,
            "nativelink_namespace",
            f"the CAS would move from {old.namespace} to {new.namespace}, where its volumes are new: the cache is lost",
            f"{workload.loss}: {_allow(workload.immutable)}, run bootstrap and push",
        )
    if old.store != new.store:
        yield (
            "cas_store",
            "nativelink_cas_store",
            f"{old.store} in the committed tree would become {new.store}, which is still empty",
            f"copy it first (docs/object-store.md), or {workload.loss}: {_allow('cas_store')}, render and push",
        )
    if old.namespace != new.namespace:
        return  # all objects are new in the other namespace
    anew = "delete the StatefulSet and its PersistentVolumeClaims"
    orphan = "delete the StatefulSet with --cascade=orphan"
    if bytes_of(old.size) != bytes_of(new.size):
        grows = bytes_of(old.size) < bytes_of(new.size)
        why = "a StatefulSet cannot change it" if grows else "a volume cannot shrink"
        step = f"grow each PersistentVolumeClaim to {new.size}, {orphan}" if grows else anew
        by_hand = _procedure(workload.volume_size, step, "" if grows else workload.loss)
        by_playbook = f"{_allow(workload.volume_size)}, render, run nativelink.gitops.grow and push (docs/changes.md)"
        yield (
            workload.volume_size,
            f"{workload.prefix}_volume_size",
            f"{old.size} in the committed tree would become {new.size}, and {why}",
            by_playbook if grows and workload is CAS else by_hand,
        )
    if old.storage_class != new.storage_class:
        yield (
            workload.storage_class,
            f"{workload.prefix}_storage_class",
            f"{old.storage_class} in the committed tree would become {new.storage_class}, and a volume cannot change "
            "its class",
            _procedure(workload.storage_class, anew, workload.loss),
        )
    keys = sorted({*old.immutable, *new.immutable})
    if changed := [key for key in keys if old.immutable.get(key) != new.immutable.get(key)]:
        yield (
            workload.immutable,
            workload.file,
            f"{', '.join(changed)} of the StatefulSet would change, and the API server refuses that",
            _procedure(workload.immutable, orphan),
        )


def _moves(old: Layout, new: Layout) -> Iterator[tuple[str, str, str]]:
    """Variable, problem and fix if keys would move. Without a list of shards in the committed tree none do."""
    if not old or not new or not (share := moved(old, new)):
        return
    before, after = (len({pod for pod, _unused in shards}) for shards in (old, new))
    least = moved(old, layout(after, before)) if before < after else share
    better = f"set nativelink_cas_layout_from to {before}, which moves {100 * least:.0f}%; " if least < share else ""
    yield (
        "nativelink_cas_layout_from" if before == after else "nativelink_cas_replicas",
        f"{before} shards in the committed tree would become {after}, which moves {100 * share:.0f}% of the keys: "
        "cached results are lost unless nativelink.gitops.grow copies them (docs/grow.md), and the scheduler and all "
        "workers, which address the shards, are replaced",
        f"{better}{_allow('cas_replicas')}, render and push",
    )


def _allow(name: str) -> str:
    return f"add {name} to nativelink_allow_changes for that time"


def _procedure(name: str, step: str, loss: str = "") -> str:
    """Return the steps of a change that the API server refuses.

    The GitOps engine must not run meanwhile: it would make the deleted StatefulSet again, as it was.
    """
    start = f"{loss}: {_allow(name)}" if loss else _allow(name)
    return f"{start}, render, suspend the GitOps engine, {step}, push, resume the engine (commands: docs/changes.md)"


def _claim(template: Object) -> Object:
    """A claim without its size and class, which have names of their own among the changes."""
    spec = {key: value for key, value in template["spec"].items() if key not in ("storageClassName", "resources")}
    return {**template, "spec": spec}

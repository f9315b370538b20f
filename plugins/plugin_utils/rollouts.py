"""Says what a push of a rendered tree does to the running pods, from the difference between two trees."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from . import committed, layout
from .quantities import duration_text
from .render import DASHBOARDS, KUSTOMIZATION

Files = Mapping[str, str]
# A tree with conflict markers, for example.
_BROKEN = (AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError)
_WORKLOADS = ("daemonset.yaml", "deployment.yaml", "statefulset.yaml")

# By component, in the order of the lines: its name, and what happens when its pods are replaced. A scheduler that stops
# disconnects its workers, which then end what they run (docs/scheduler.md).
_COMPONENTS = {
    "cas": ("CAS", "its pods restart one after another; the cache on their volumes stays"),
    "scheduler": ("scheduler", "restarts; running actions start again, and clients wait"),
    "redis": ("Redis", "restarts; no action begins or ends until it is back, and the queue on its volume stays"),
    "worker": ("pool", "its workers are replaced; running actions finish first"),
    "headroom": ("headroom of pool", "its placeholders are replaced; they run no actions"),
    "prepull": ("pre-pull of pool", "its pods are replaced, and pull the images that are new; they run no actions"),
    "collector": ("collector", "restarts; the autoscalers keep all workers until it is back"),
    "collector-workers": ("collector of the workers", "restarts; the metrics of workers pause until it is back"),
    "demand": ("demand", "restarts; the autoscalers keep all workers until it is back"),
    "prometheus": ("Prometheus", "restarts; the autoscalers keep all workers until it is back"),
}
# A pool, if the scheduler restarts in the same push. Its actions have ended then.
_WITH_SCHEDULER = "its workers are replaced"


@dataclass(frozen=True)
class _Workload:
    """All of a StatefulSet or Deployment that decides on its pods, with the texts of the files that they mount."""

    component: str
    pool: str
    namespace: str
    template: Mapping[str, Any]
    configuration: Mapping[str, str | None]

    @property
    def name(self) -> str:
        """The name for people."""
        return f"{_COMPONENTS[self.component][0]} {self.pool}".strip()

    @property
    def order(self) -> tuple[int, str]:
        """The place among the lines."""
        return list(_COMPONENTS).index(self.component), self.pool

    @property
    def grace(self) -> str:
        """The time that running actions get, for a worker."""
        seconds = self.template["spec"].get("terminationGracePeriodSeconds", 0)
        return f", within {duration_text(seconds)}" if self.component == "worker" else ""


def rollouts(before: Files, after: Files) -> list[str]:
    """A line for each workload whose pods a push of `after` replaces, adds or removes while `before` runs.

    Both map paths below `rendered/` to texts; `before` is what `running` returned. There are no lines if `before` has
    no workload, or is broken. The patches of the user are not considered.
    """
    if before == {path: after.get(path) for path in before}:
        return []
    try:
        old, new = _workloads(before), _workloads(after)
    except _BROKEN:
        return []
    return [*_lines(old, new), *_keys(before, after), *_results(before, after)] if old else []


def running(directory: Path, after: Files, revision: str) -> dict[str, str]:
    """The workloads and configurations of the tree in the folder of a cluster, as a revision has them.

    Raises committed.UnknownRevisionError.
    """

    def read(paths: set[str]) -> dict[str, str]:
        found = committed.read(directory, [f"rendered/{path}" for path in sorted(paths)], revision)
        return {path.removeprefix("rendered/"): text.decode(errors="replace") for path, text in found.items()}

    known = {KUSTOMIZATION, *filter(_matters, after)}
    files = read(known)
    if files.get(KUSTOMIZATION) == after[KUSTOMIZATION]:
        return files
    # The old tree may have workloads that the new one does not have, such as those of a removed pool.
    others = set(filter(_matters, _named(files.get(KUSTOMIZATION, "")))) - known
    return files | read(others) if others else files


def _matters(path: str) -> bool:
    """Return whether a file is a workload, or is mounted by one."""
    if path.startswith(DASHBOARDS):
        return False
    return path.endswith(_WORKLOADS) or not path.endswith(".yaml") or path.startswith("monitoring/")


def _named(kustomization: str) -> set[str]:
    """All files that a kustomization names; none if it is broken."""
    try:
        parsed = yaml.load(kustomization, yaml.CSafeLoader)
        return {*parsed["resources"], *(file for files in _configurations(parsed).values() for file in files)}
    except _BROKEN:
        return set()


def _configurations(kustomization: Mapping[str, Any]) -> dict[str, list[str]]:
    return {each["name"]: each["files"] for each in kustomization.get("configMapGenerator", ())}


def _workloads(files: Files) -> dict[str, _Workload]:
    """The workloads by their path."""
    if KUSTOMIZATION not in files:
        return {}
    configurations = _configurations(yaml.load(files[KUSTOMIZATION], yaml.CSafeLoader))
    found = {}
    for path, text in files.items():
        if path.endswith(_WORKLOADS):
            item = yaml.load(text, yaml.CSafeLoader)
            labels, template = item["metadata"]["labels"], item["spec"]["template"]
            mounted = (volume.get("configMap", {}).get("name") for volume in template["spec"].get("volumes", ()))
            found[path] = _Workload(
                component=labels["app.kubernetes.io/component"],
                pool=labels.get("nativelink-gitops/pool", ""),
                namespace=item["metadata"]["namespace"],
                template=template,
                configuration={file: files.get(file) for name in mounted for file in configurations.get(name, ())},
            )
    return found


def _keys(before: Files, after: Files) -> Iterator[str]:
    """A line where keys move to other pods of the CAS."""
    old, new = (layout.parsed(files.get("cas/cas.json5", "")) for files in (before, after))
    if old and new and (share := layout.moved(old, new)):
        moved = f"{100 * share:.0f}% of the keys move to other pods"
        yield f"cache: {moved}; nativelink.gitops.grow copies what they name (docs/grow.md)"


def _results(before: Files, after: Files) -> Iterator[str]:
    """A line where the listener for workers is new, because clients can no longer write action results then."""
    old, new = (files.get("cas/cas.json5", "") for files in (before, after))
    if old and '"writers"' in new and '"writers"' not in old:
        yield (
            "action results: only workers write them; clients that upload results of their own need "
            "nativelink_writer_peers (docs/upgrades.md)"
        )


def _lines(old: Mapping[str, _Workload], new: Mapping[str, _Workload]) -> Iterator[str]:
    replaced = [path for path in new if path in old and old[path] != new[path]]
    interrupted = any(new[path].component == "scheduler" for path in replaced)
    for path, workload in sorted(new.items(), key=lambda item: item[1].order):
        if path not in old:
            yield f"{workload.name}: is new"
        elif path in replaced:
            ended = interrupted and workload.component == "worker"
            consequence = _COMPONENTS[old[path].component][1] + old[path].grace
            yield f"{workload.name}: {_WITH_SCHEDULER if ended else consequence}"
    for path, workload in sorted(old.items(), key=lambda item: item[1].order):
        if path not in new:
            finish = "; running actions finish first" if workload.component == "worker" else ""
            yield f"{workload.name}: is removed{finish}{workload.grace}"

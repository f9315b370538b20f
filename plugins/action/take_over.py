"""Action `take_over`: hands the tree of a cluster to another GitOps engine without touching what runs."""

import time
from collections.abc import Iterator
from typing import Any

from ..plugin_utils.api import Object
from ..plugin_utils.apply import ApplyAction
from ..plugin_utils.release import identity

_OURS = "app.kubernetes.io/managed-by=nativelink-gitops"
_SECONDS = 60
_POLL_SECONDS = 0.2


class ActionModule(ApplyAction):
    """Deletes what this project made for the other engines, and gives the new engine the fields that they applied.

    Otherwise a field that is later removed from Git would stay in the cluster, owned by the old engine.
    """

    def _act_on_cluster(self) -> dict[str, Any]:
        engines = self._args["engines"]
        others = {name: engine for name, engine in engines.items() if name != self._args["engine"]}
        left = {
            name: [found for kind in engine["pointers"] for found in self._named(kind, self._args["name"])]
            for name, engine in others.items()
        }
        for pointer in (each for pointers in left.values() for each in pointers):
            self._check(pointer)
        former = [name for name, pointers in left.items() if pointers]
        if not self._task.check_mode:
            for name in former:
                self._remove(left[name], others[name])
        manager, managers = engines[self._args["engine"]]["manager"], {each["manager"] for each in others.values()}
        # Read only now: a removal may take long, and other controllers such as KEDA change objects meanwhile.
        owned = [each for each in self._tree() if managers & {entry["manager"] for entry in _applied(each)}]
        if not self._task.check_mode:
            for each in owned:
                self._hand_over(each, managers, manager)
        said = [f"took the tree from {name}, whose installation stays" for name in former]
        return {"changed": bool(former or owned), **({"cluster_summary": {"connected": said}} if said else {})}

    def _named(self, kind: Object, name: str, namespace: str = "") -> Iterator[Object]:
        """Our objects of a kind and a name, in one namespace or in any."""
        path = self._api.path(kind["api_version"], kind["kind"], namespace=namespace)
        yield from self._ours(path, kind["api_version"], kind["kind"], fieldSelector=f"metadata.name={name}")

    def _ours(self, path: str | None, api_version: str, kind: str, **query: str) -> Iterator[Object]:
        """Our objects at a path, with the apiVersion and kind that the API server leaves out of lists."""
        for each in self._api.items(path, labelSelector=_OURS, **query):
            yield {"apiVersion": api_version, "kind": kind, **each}

    def _check(self, pointer: Object) -> None:
        """Refuse to delete a pointer whose deletion would delete the tree's objects."""
        if pointer["kind"] == "Kustomization" and pointer["spec"].get("deletionPolicy") != "Orphan":
            problem = f"{identity(pointer)} would delete NativeLink with itself: its deletionPolicy is not Orphan"
            self.refuse("gitops_provider", problem, "set it to Orphan, then run again")
        if pointer["kind"] == "Application" and pointer["metadata"].get("finalizers"):
            problem = f"{identity(pointer)} would delete NativeLink with itself: it has a finalizer"
            self.refuse("gitops_provider", problem, "remove the finalizer, then run again")

    def _remove(self, pointers: list[Object], engine: Object) -> None:
        """Delete what makes an engine act on the tree, then what was made for that, and last what does nothing alone.

        In this order the engine never acts without its permissions, and an interrupted run leaves a pointer for the
        next run to find.
        """
        last = engine["pointers"][-1]["kind"]
        namespaces = {each["metadata"]["namespace"] for each in pointers}
        for each in pointers:
            if each["kind"] != last:
                self._delete(each)
        for each in engine["rest"]:
            for namespace in {each["namespace"]} if "namespace" in each else namespaces:
                for found in self._named(each, each["name"], namespace):
                    self._api.delete(found)
        for each in pointers:
            if each["kind"] == last:
                self._delete(each)

    def _delete(self, pointer: Object) -> None:
        self._api.delete(pointer)
        deadline = time.monotonic() + _SECONDS
        while self._api.live(pointer):  # Flux's have a finalizer: their controller forgets them first
            if time.monotonic() > deadline:
                problem = f"{identity(pointer)} still exists {_SECONDS} s after its deletion"
                self.refuse("gitops_provider", problem, "see that its controller runs, then run again")
            time.sleep(_POLL_SECONDS)

    def _tree(self) -> Iterator[Object]:
        """Our objects in the tree's namespaces."""
        for kind in self._args["kinds"]:
            version = "v1"
            if kind["group"]:
                if not (group := self._api.get(f"/apis/{kind['group']}")):
                    continue  # not in this cluster
                version = group["preferredVersion"]["groupVersion"]
            for namespace in self._args["namespaces"]:
                path = f"{'/apis' if kind['group'] else '/api'}/{version}/namespaces/{namespace}/{kind['resource']}"
                yield from self._ours(path, version, kind["kind"])

    def _hand_over(self, live: Object | None, managers: set[str], manager: str) -> None:
        """Give the fields that other managers applied to `manager`; try again if another client changes the object."""
        deadline = time.monotonic() + _SECONDS
        while live and not self._api.merge(live, _renamed(live, managers, manager)):
            if time.monotonic() > deadline:
                waited = f"waited {_SECONDS} s to hand {identity(live)} over to {self._args['engine']}"
                problem = f"{waited}: another client changed it each time"
                self.refuse("gitops_provider", problem, "find out which client writes it so often, then run again")
            live = self._api.live(live)


def _applied(live: Object) -> list[Object]:
    return [entry for entry in live["metadata"].get("managedFields", ()) if entry["operation"] == "Apply"]


def _renamed(live: Object, managers: set[str], manager: str) -> Object:
    """The change that gives the fields of other managers to `manager`, which keeps its own fields if it has some.

    It applies to this version of the object only.
    """
    entries, taken = [], any(entry["manager"] == manager for entry in _applied(live))
    for entry in live["metadata"]["managedFields"]:
        foreign = entry["operation"] == "Apply" and entry["manager"] in managers
        if not foreign:
            entries.append(entry)
        elif not taken:
            entries.append({**entry, "manager": manager})
            taken = True
    return {"metadata": {"managedFields": entries, "resourceVersion": live["metadata"]["resourceVersion"]}}

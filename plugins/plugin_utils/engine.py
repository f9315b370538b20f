"""What Argo CD or Flux says of the tree of a cluster."""

from dataclasses import dataclass

from .api import Api, Object
from .release import condition_of
from .specs import Values

_KINDS = {
    "flux": ("Kustomization", "kustomize.toolkit.fluxcd.io/v1", "kustomizations"),
    "argocd": ("Application", "argoproj.io/v1alpha1", "applications"),
}


@dataclass(frozen=True)
class Engine:
    """An engine, and the kind of the object with which it follows a tree.

    `state` has its own words, also for a fault. `revision` is as it writes it: `main@sha1:0123…` of Flux, or the digits
    alone. `found` is false where the object does not exist.
    """

    name: str
    kind: str
    found: bool = True
    ok: bool = False
    state: str = "not connected"
    revision: str = ""

    @property
    def commit(self) -> str:
        """The digits of the commit that the cluster has."""
        return self.revision.rpartition(":")[2]


def engine_of(api: Api, values: Values) -> Engine | None:
    """The engine of a cluster, and its state; None if the cluster has none."""
    name = values["gitops_provider"]
    if name == "none":
        return None
    kind, version, plural = _KINDS[name]
    named = f"nativelink-{values['cluster']}"
    live = api.get(f"/apis/{version}/namespaces/{values['gitops_namespace']}/{plural}/{named}")
    if live is None:
        return Engine(name, kind, found=False)
    status = live.get("status") or {}
    if name == "flux":
        ready, revision = condition_of(live, "Ready"), status.get("lastAppliedRevision", "")
        if ready.get("status") == "True":
            return Engine(name, kind, ok=True, state="Ready", revision=revision)
        return Engine(name, kind, state=_said(ready.get("reason", "unknown"), ready), revision=revision)
    sync, health = status.get("sync") or {}, status.get("health") or {}
    states, revision = f"{sync.get('status', 'Unknown')} {health.get('status', 'Unknown')}", sync.get("revision", "")
    if states == "Synced Healthy":
        return Engine(name, kind, ok=True, state=states, revision=revision)
    reasons = [*(status.get("conditions") or ()), status.get("operationState") or {}]
    return Engine(name, kind, state=_said(states, *reasons), revision=revision)


def _said(state: str, *reasons: Object) -> str:
    """A state with the first message that explains it."""
    return ": ".join([state, *[each["message"] for each in reasons if each.get("message")][:1]])

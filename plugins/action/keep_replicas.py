"""Action `keep_replicas`: keeps the pods of a pool, or of the CAS, that changes from fixed to autoscaled.

The tree of such a workload no longer has `replicas`. The engine was the only owner of that field, so that its next
apply without the field would reset it to the default of 1. A second owner keeps the number until the autoscaler takes
over.
"""

from typing import Any

from ..plugin_utils.api import Object
from ..plugin_utils.apply import ApplyAction
from ..plugin_utils.derived import scaling_of
from ..plugin_utils.release import FIELD_MANAGER
from ..plugin_utils.specs import with_defaults

_MANAGER = f"{FIELD_MANAGER}-replicas"
_POOL = "nativelink-gitops/pool"
# The placeholders of a pool have its label too, and a fixed number.
_WORKERS = f"{_POOL},app.kubernetes.io/component=worker"
_CAS = "app.kubernetes.io/name=nativelink,app.kubernetes.io/component=cas"


class ActionModule(ApplyAction):
    """Owns the replicas of autoscaled pools that only engines own."""

    def _act_on_cluster(self) -> dict[str, Any]:
        values = with_defaults(self.host_values())
        pools = values["nativelink_worker_pools"]
        autoscaled = [pool["name"] for pool in pools if scaling_of(pool, values) != "none"]
        found = [
            live
            for live in self._found("Deployment", values["nativelink_workers_namespace"], _WORKERS)
            if live["metadata"]["labels"][_POOL] in autoscaled
        ]
        if values["nativelink_cas_max_replicas"]:
            found += self._found("StatefulSet", values["nativelink_namespace"], _CAS)
        kept = [
            {
                "apiVersion": "apps/v1",
                "kind": live["kind"],
                "metadata": {key: live["metadata"][key] for key in ("name", "namespace")},
                "spec": {"replicas": live["spec"]["replicas"]},
            }
            for live in found
            if _is_to_lose_them(live)
        ]
        for each in kept:
            self._api.apply(each, _MANAGER, dry_run=self._task.check_mode)
        said = [
            f"{each['metadata']['name']} keeps its {each['spec']['replicas']} replicas until its autoscaler takes over"
            for each in kept
        ]
        return {"changed": bool(kept), "cluster_summary": {"connected": said}}

    def _found(self, kind: str, namespace: str, selector: str) -> list[Object]:
        path = self._api.path("apps/v1", kind, namespace=namespace)
        return [{"kind": kind, **live} for live in self._api.items(path, labelSelector=selector)]


def _is_to_lose_them(live: Object) -> bool:
    """Return whether `replicas` was only ever applied. An autoscaler, or a person who scales, owns it by an update."""
    owners = [
        (entry["operation"], entry["manager"])
        for entry in live["metadata"]["managedFields"]
        if "f:replicas" in entry.get("fieldsV1", {}).get("f:spec", {})
    ]
    return bool(owners) and all(operation == "Apply" and manager != _MANAGER for operation, manager in owners)

"""Action `keep_replicas`: a pool that changes from fixed to autoscaled keeps the workers that it has.

Such a pool loses `replicas` in the tree. The engine that applied the number was its only owner; when its next apply
leaves the field out, the API server would put the default there: 1. A second owner keeps the number until the
autoscaler takes over.
"""

from __future__ import annotations

from typing import Any

from ..plugin_utils.api import Object
from ..plugin_utils.apply import ApplyAction
from ..plugin_utils.context import template_context
from ..plugin_utils.release import FIELD_MANAGER
from ..plugin_utils.templating import host_values

_MANAGER = f"{FIELD_MANAGER}-replicas"
_POOL = "nativelink-gitops/pool"


class ActionModule(ApplyAction):
    """Arguments: `kubeconfig`, `context`. Which pools are autoscaled, the cluster's variables say."""

    def act(self) -> dict[str, Any]:
        """Own the replicas of each autoscaled pool that only engines own so far."""
        wanted = template_context(host_values(self._task_vars, self._loader))
        autoscaled = [pool["name"] for pool in wanted["pools"] if pool["scaling"] != "none"]
        path = f"/apis/apps/v1/namespaces/{wanted['workers_namespace']}/deployments"
        workers = (self._api.get(path, labelSelector=_POOL) or {})["items"]
        kept = [
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {key: live["metadata"][key] for key in ("name", "namespace")},
                "spec": {"replicas": live["spec"]["replicas"]},
            }
            for live in workers
            if live["metadata"]["labels"][_POOL] in autoscaled and _is_to_lose_them(live)
        ]
        for each in kept:
            self._api.apply(each, _MANAGER, dry_run=self._task.check_mode)
        said = [
            f"{each['metadata']['name']} keeps its replicas, {each['spec']['replicas']}, until its autoscaler has them"
            for each in kept
        ]
        return {"changed": bool(kept), "cluster_summary": {"connected": said}}


def _is_to_lose_them(live: Object) -> bool:
    """Whether `replicas` has owners by apply only: an autoscaler, or whoever scaled by hand, owns it by an update."""
    owners = [
        (entry["operation"], entry["manager"])
        for entry in live["metadata"]["managedFields"]
        if "f:replicas" in entry.get("fieldsV1", {}).get("f:spec", {})
    ]
    return bool(owners) and all(operation == "Apply" and manager != _MANAGER for operation, manager in owners)

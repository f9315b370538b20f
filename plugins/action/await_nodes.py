"""Action `await_nodes`: waits for a DaemonSet, on whose nodes pods may fail for a reason that they log."""

import time
from typing import Any

from ..plugin_utils import release
from ..plugin_utils.api import ApiError, Object
from ..plugin_utils.apply import ApplyAction

_POLL_SECONDS = 1


class ActionModule(ApplyAction):
    """Polls the DaemonSet and its pods until each pod is ready or has given its reason."""

    def _act_on_cluster(self) -> dict[str, Any]:
        if self._task.check_mode:
            return {}
        self._said: dict[str, str] = {}  # why a pod is not ready, by its UID
        deadline = time.monotonic() + self._args["timeout"]
        while True:
            pods, why = [], None
            try:
                pods, done = self._look()
            except ApiError as error:  # the API server may restart meanwhile
                done, why = False, error
            late = time.monotonic() > deadline
            if late and why:
                raise why
            if done or late:
                return self._summary(pods)
            time.sleep(_POLL_SECONDS)

    def _look(self) -> tuple[list[Object], bool]:
        """The pods, and whether they are complete and each is ready or has given its reason."""
        live = self._api.read("apps/v1", "DaemonSet", self._args["name"], self._args["namespace"])
        if live is None:
            return [], False
        pods = self._api.pods_of(live)
        status, wanted = live["status"], live["status"].get("desiredNumberScheduled", 0)
        complete = (
            status.get("observedGeneration", 0) >= live["metadata"]["generation"]
            and status.get("updatedNumberScheduled", 0) == wanted == len(pods)
            and not any("deletionTimestamp" in pod["metadata"] for pod in pods)
        )
        return pods, complete and all(_is_ready(pod) or self._reason(pod) for pod in pods)

    def _reason(self, pod: Object) -> str:
        """The reason that a pod has logged for not being ready; empty if it has not."""
        uid = pod["metadata"]["uid"]
        if not self._said.get(uid) and pod["status"].get("phase") == "Running":
            line = self._api.last_line(pod)
            self._said[uid] = line if line.startswith(f"{pod['spec']['nodeName']}: not ") else ""
        return self._said.get(uid, "")

    def _summary(self, pods: list[Object]) -> dict[str, Any]:
        what, ready = self._args["what"], [pod for pod in pods if _is_ready(pod)]
        lines = sorted(f"{what}: {self._reason(pod) or _trouble(pod)}" for pod in pods if not _is_ready(pod))
        summary = {"provisioned": [f"{what}: {len(ready)} of {len(pods)} nodes"]}
        return {"cluster_summary": summary, "notices": {self._cluster: lines}}


def _is_ready(pod: Object) -> bool:
    return release.condition_of(pod, "Ready").get("status") == "True"


def _trouble(pod: Object) -> str:
    node = pod["spec"].get("nodeName", "a node")
    return f"{node}: {release.pod_trouble([pod]) or 'pod ' + pod['metadata']['name'] + ' is not ready'}"

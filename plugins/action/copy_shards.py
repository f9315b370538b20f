"""Action `copy_shards`: copies content between the pods of the CAS, before the number of those that have it changes."""

import time
from collections.abc import Iterator
from typing import Any

from ..plugin_utils import grow, render
from ..plugin_utils.api import Object
from ..plugin_utils.apply import ApplyAction
from ..plugin_utils.layout import listed
from ..plugin_utils.release import FIELD_MANAGER, condition_of, not_ready, pod_trouble
from ..plugin_utils.specs import with_defaults

_POLL_SECONDS = 1
_CAS = "cas/cas.json5"
_WORKLOADS = (("StatefulSet", "nativelink_namespace"), ("Deployment", "nativelink_namespace"))
_WORKLOADS += (("Deployment", "nativelink_workers_namespace"),)
_SHARDING = "app.kubernetes.io/part-of=nativelink,app.kubernetes.io/component in (cas,scheduler,worker)"


class ActionModule(ApplyAction):
    """Copies if all pods are ready for it, and says what to do next."""

    def _act_on_cluster(self) -> dict[str, Any]:
        self._values = with_defaults(self.host_values())
        shards, pods = self._values["nativelink_cas_shards_next"], self._values["nativelink_cas_replicas"]
        if not shards:
            return {"cluster_summary": {"next": ["nothing moves: nativelink_cas_shards_next is 0 (docs/grow.md)"]}}
        self._check()
        if self._task.check_mode:
            return {}
        said = self._copied(grow.jobs(self._values, pods))
        switch = f"set nativelink_cas_shards to {shards}" if shards < pods else "remove nativelink_cas_shards"
        following = f"{switch}; remove nativelink_cas_shards_next, allow cas_replicas, render and push"
        return {"changed": True, "cluster_summary": {"provisioned": said, "next": [following]}}

    def _check(self) -> None:
        """Refuse to begin while a pod runs that does not write to the new pods."""
        workloads = [
            {"kind": kind, **each}
            for kind, namespace in _WORKLOADS
            for each in self._items("apps/v1", kind, self._values[namespace])
        ]
        cas = next((each for each in workloads if each["metadata"]["name"] == "nativelink-cas"), None)
        name = next(iter(_config_maps(cas["spec"]["template"])), "") if cas else ""
        live = self._api.read("v1", "ConfigMap", name, self._values["nativelink_namespace"]) if name else None
        wanted = listed(render.tree(self._values)[_CAS])
        if listed((live or {}).get("data", {}).get("cas.json5", "")) != wanted:
            self._refuse("the running CAS does not have it yet", "render, push, and run this again after the rollout")
        if trouble := not_ready(cas):
            self._refuse(f"the CAS is not ready: {trouble}", "run this again when it is")
        current = {name for each in workloads for name in _config_maps(each["spec"]["template"])}
        spaces = {self._values[namespace] for _unused, namespace in _WORKLOADS}
        pods = [each for namespace in sorted(spaces) for each in self._items("v1", "Pod", namespace)]
        if old := sorted(each["metadata"]["name"] for each in pods if not {*_config_maps(each)} <= current):
            shown = ", ".join(old[:5]) + (" and others" if len(old) > 5 else "")
            problem = f"{len(old)} pods have an older configuration: {shown}"
            self._refuse(problem, "run this again when they are replaced; workers end their actions first")

    def _items(self, api_version: str, kind: str, namespace: str) -> list[Object]:
        return self._api.items(self._api.path(api_version, kind, namespace=namespace), labelSelector=_SHARDING)

    def _refuse(self, problem: str, remedy: str) -> None:
        self.refuse("nativelink_cas_shards_next", problem, remedy)

    def _copied(self, jobs: list[Object]) -> list[str]:
        """Run the Jobs, and return the last line of each."""
        deadline = time.monotonic() + self._args["timeout"]
        for each in jobs:
            self._api.delete(each)  # of an earlier run
            self._wait(lambda each=each: self._api.live(each) is None, deadline, [each])
        try:
            live = [self._api.apply(each, FIELD_MANAGER) for each in jobs]
            for each in grow.companions(self._values, live):
                self._api.apply(each, FIELD_MANAGER)
            self._wait(lambda: all(self._ended(each) for each in jobs), deadline, jobs)
            return [f"{each['metadata']['name']}: {self._last_line(each)}" for each in jobs]
        finally:
            for each in jobs:
                self._api.delete(each)  # and with the last one, its companions

    def _wait(self, done: Any, deadline: float, jobs: list[Object]) -> None:
        while not done():
            if time.monotonic() > deadline:
                trouble = pod_trouble(pod for each in jobs for pod in self._pods(each)) or "the Jobs have not ended"
                self._refuse(f"{trouble} after {self._args['timeout']} s", "run this again, which goes on from there")
            time.sleep(_POLL_SECONDS)

    def _ended(self, job: Object) -> bool:
        live = self._api.live(job) or {}
        if condition_of(live, "Failed").get("status") == "True":
            problem = f"{job['metadata']['name']} failed: {self._last_line(job)}"
            self._refuse(problem, "run this again, which goes on from there")
        return condition_of(live, "Complete").get("status") == "True"

    def _last_line(self, job: Object) -> str:
        return next((line for pod in self._pods(job) if (line := self._api.last_line(pod))), "")

    def _pods(self, job: Object) -> list[Object]:
        """The pods of a Job, the latest first."""
        path = self._api.path("v1", "Pod", namespace=job["metadata"]["namespace"])
        pods = self._api.items(path, labelSelector=f"batch.kubernetes.io/job-name={job['metadata']['name']}")
        return sorted(pods, key=lambda pod: pod["metadata"]["creationTimestamp"], reverse=True)


def _config_maps(pod: Object) -> Iterator[str]:
    """The ConfigMaps with the configurations that a pod, or a template of pods, mounts."""
    for volume in pod["spec"].get("volumes", ()):
        if volume["name"] == "config" and "configMap" in volume:
            yield volume["configMap"]["name"]

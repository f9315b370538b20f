"""Action `grow_volumes`: grows the volumes of the CAS, while its pods run."""

import time
from typing import Any

from ..plugin_utils.api import Object, RefusedError
from ..plugin_utils.apply import ApplyAction
from ..plugin_utils.quantities import bytes_of
from ..plugin_utils.specs import with_defaults

_NAME = "nativelink-cas"
_SECONDS = 60
_POLL_SECONDS = 0.2
_KEPT = ("name", "namespace", "labels", "annotations")


class ActionModule(ApplyAction):
    """Grows the claims, and replaces the StatefulSet by one that differs in the size only and takes over the pods."""

    def _act_on_cluster(self) -> dict[str, Any]:
        values = with_defaults(self.host_values())
        size, namespace = values["nativelink_cas_volume_size"], values["nativelink_namespace"]
        live = self._api.read("apps/v1", "StatefulSet", _NAME, namespace)
        if live is None or bytes_of(_request(live["spec"]["volumeClaimTemplates"][0])["storage"]) >= bytes_of(size):
            return {}
        claims = [
            {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **each}
            for each in self._api.items(self._api.path("v1", "PersistentVolumeClaim", namespace=namespace))
            if each["metadata"]["name"].startswith(f"data-{_NAME}-")
            and bytes_of(_request(each)["storage"]) < bytes_of(size)
        ]
        if not self._task.check_mode:
            self._grow(live, claims, size)
        grown = f"{len(claims)} CAS volumes: grown to {size}" + (" (check)" if self._task.check_mode else "")
        following = ["push what was rendered: until then the engine cannot apply the StatefulSet"]
        return {"changed": True, "cluster_summary": {"provisioned": [grown], "next": following}}

    def _grow(self, live: Object, claims: list[Object], size: str) -> None:
        for each in claims:
            try:
                self._api.merge(each, {"spec": {"resources": {"requests": {"storage": size}}}})
            except RefusedError as refused:
                remedy = "let the StorageClass expand volumes (allowVolumeExpansion), or start with new volumes"
                self.refuse("nativelink_cas_volume_size", refused.message, f"{remedy} (docs/changes.md)")
        _request(live["spec"]["volumeClaimTemplates"][0])["storage"] = size
        metadata = {key: value for key, value in live["metadata"].items() if key in _KEPT}
        managers = [each["manager"] for each in live["metadata"]["managedFields"] if each["operation"] == "Apply"]
        self._remove(live)
        # As the engine, which would otherwise not own what it later removes.
        anew = {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": metadata, "spec": live["spec"]}
        self._api.apply(anew, managers[0] if managers else _NAME)

    def _remove(self, live: Object) -> None:
        """Delete the StatefulSet without its pods, and again if the engine makes it anew meanwhile."""
        deleted, deadline = "", time.monotonic() + _SECONDS
        while found := self._api.live(live):
            if found["metadata"]["uid"] != deleted:
                self._api.delete(found, orphan=True)
                deleted = found["metadata"]["uid"]
            if time.monotonic() > deadline:
                problem = f"StatefulSet {_NAME} still exists {_SECONDS} s after its deletion"
                self.refuse("nativelink_cas_volume_size", problem, "suspend the GitOps engine, then run this again")
            time.sleep(_POLL_SECONDS)


def _request(claim: Object) -> Object:
    return claim["spec"]["resources"]["requests"]

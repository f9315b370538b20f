"""Action `verify`: checks that a live cluster does what its tree says, as its clients see it."""

from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from ..plugin_utils import reapi, status, verify
from ..plugin_utils.api import RefusedError
from ..plugin_utils.apply import ApplyAction
from ..plugin_utils.context import Context, context
from ..plugin_utils.ports import PORTS
from ..plugin_utils.reapi import Identity, Reapi
from ..plugin_utils.verify import Farm, clients, cluster, execution

_FORWARD = "port-forward"
_SERVICES = "services"


class ActionModule(ApplyAction):
    """Runs all checks, also after one that fails, and returns what they saw."""

    def _act(self) -> dict[str, Any]:
        if self._args["address"] != _SERVICES:
            return super()._act()
        self._cluster, self._api = self._task_vars["inventory_hostname"], None
        return {"changed": False, **self._act_on_cluster()}

    def _act_on_cluster(self) -> dict[str, Any]:
        if reapi.MISSING:
            self.refuse("Python", f"the package {reapi.MISSING} is missing", "install meta/requirements.txt")
        known = context(self.host_values())
        self._values = known.variables
        with ExitStack() as stack:
            try:
                farm = self._farm(known, stack)
            except verify.Fault as fault:
                self.refuse("verify_address", str(fault), fault.fix)
            rows = self._rows(farm)
        self._note(ok=all(row.result != verify.FAILED for row in rows))
        failed = [f"{self._cluster}: {row.check}: {row.seen}; {row.fix}" for row in rows if row.result == verify.FAILED]
        result = {"cluster_summary": {"verified": verify.table(rows)}}
        return {**result, "failed": True, "msg": "\n".join(failed)} if failed else result

    def _note(self, *, ok: bool) -> None:
        """Write the result down where the playbook `status` finds it."""
        said = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {'ok' if ok else 'failed'}"
        space = self._api and self._api.read("v1", "Namespace", self._values["nativelink_namespace"])
        if space:
            with suppress(RefusedError):  # this user may only read
                self._api.merge(space, {"metadata": {"annotations": {status.VERIFIED: said}}})

    def _rows(self, farm: Farm) -> list[verify.Row]:
        first = {"capabilities": partial(clients.capabilities, farm)}
        checks = {
            "small blobs": clients.small_blobs,
            "large blob": clients.large_blob,
            "wrong bytes": clients.wrong_bytes,
            "action results": clients.results,
            "strangers": clients.strangers,
            "worker API": clients.worker_api,
        }
        pools = [
            {f"pool {each.name}": partial(execution.pool, farm, each)}
            | {f"network {each.name}": partial(execution.network, farm, each)}
            for each in farm.context.pools
        ]
        beside = {
            "CAS": partial(cluster.cas, farm),
            "certificates": partial(cluster.certificates, farm),
            "GitOps": partial(cluster.gitops, farm),
            "Prometheus": partial(cluster.prometheus, farm),
        }
        if not self._api:
            beside = dict.fromkeys(beside, verify.unasked)
        then = [{name: partial(check, farm)} for name, check in checks.items()]
        return verify.run(first, [*then, *pools], beside)

    def _farm(self, known: Context, stack: ExitStack) -> Farm:
        """The cluster with its clients, whose port-forwards end with the stack."""
        values, edge = self._values, self._edge()
        folder = Path(self._args["certificates_dir"] or f"~/.nativelink/{self._cluster}").expanduser()
        client = self._args["client"]
        ca, certificate, key = (folder / name for name in ("ca.crt", f"{client}.crt", f"{client}.key"))
        content = {path: path.read_bytes() for path in (ca, certificate, key) if edge and path.is_file()}
        connect = partial(
            Reapi,
            instance=values["nativelink_instance_name"],
            tls=bool(edge and values["nativelink_edge_tls_secret"]),
            name=values["nativelink_hostname"] if edge else "",
            ca=content.get(ca),
        )
        who = Identity(content.get(certificate), content.get(key), self._args["headers"])
        if edge:
            cas = scheduler = connect(edge, who=who)
        else:
            cas, scheduler = (connect(self._inside(stack, name), who=who) for name in ("cas", "scheduler"))
        identified = values["nativelink_edge_client_ca_secret"] or values["nativelink_edge_access"]
        if edge and identified and not {certificate, key} <= content.keys() and not self._args["headers"]:
            remedy = "make it (make certificates), name another one, or set verify_certificates_dir or verify_headers"
            self.refuse("verify_client", f"there is no certificate and key {certificate}", remedy)
        return Farm(
            context=known,
            api=self._api,
            address=edge,
            cas=cas,
            scheduler=scheduler,
            stranger=connect(edge, who=Identity()) if edge and identified else None,
            role=self._args["role"] if edge else "execute",
            timeout=self._args["timeout"],
            megabytes=self._args["megabytes"],
        )

    def _edge(self) -> str:
        """The address of the edge, or nothing if clients come past it."""
        values, address = self._values, self._args["address"]
        if address in (_FORWARD, _SERVICES) or (not address and values["nativelink_edge"] == "none"):
            return ""
        if address:
            return address
        host = values["nativelink_hostname"]
        if not host:
            version = "gateway.networking.k8s.io/v1"
            live = self._api.read(version, "Gateway", "nativelink", values["nativelink_namespace"]) or {}
            host = next((each["value"] for each in live.get("status", {}).get("addresses", ())), "")
            if not host:
                remedy = f"write where the edge is, or {_FORWARD}"
                self.refuse("verify_address", "the Gateway nativelink has no address", remedy)
        return f"{host}:{443 if values['nativelink_edge_tls_secret'] else 80}"

    def _inside(self, stack: ExitStack, name: str) -> str:
        """The address of a Service, or where its port is forwarded to until the stack ends."""
        namespace = self._values["nativelink_namespace"]
        if not self._api:
            return f"nativelink-{name}.{namespace}.svc:{PORTS[name]}"
        kubectl = ["kubectl", f"--kubeconfig={Path(self._argument('kubeconfig')).expanduser()}"]
        kubectl += [f"--context={self._argument('context')}", f"--namespace={namespace}"]
        return stack.enter_context(cluster.forwarded(kubectl, f"service/nativelink-{name}", PORTS[name]))

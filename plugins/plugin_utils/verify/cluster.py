"""What the API server, Git and the bundled Prometheus tell of a farm."""

import json
import socket
import ssl
import subprocess
from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..api import ApiError, Object
from ..context import Prometheus
from ..engine import engine_of
from ..farm import bundled_prometheus
from ..release import not_ready, pod_trouble
from . import Farm, Fault, Skipped

# As the alerts NativeLinkCertificateExpiry, NativeLinkClientCAExpiry, NativeLinkCASDiskFull and CASInodesFull say.
_DAYS, _CA_DAYS = 14, 30
_LEAST_FREE = 0.05
_SECONDS = 20


@contextmanager
def forwarded(kubectl: Iterable[str], what: str, port: int) -> Iterator[str]:
    """Forward a port of a Service or a workload to this machine, past all policies. Yields the address.

    `kubectl` is the command with its options for cluster and namespace. Raises Fault if that fails.
    """
    command = [*kubectl, "port-forward", what, f":{port}"]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    except OSError as error:
        raise Fault(f"kubectl cannot be started ({error.strerror})", "install kubectl on this machine") from None
    with process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line.startswith("Forwarding from "):
                process.kill()
                said = process.stderr.read() if process.stderr else ""
                raise Fault(f"kubectl port-forward {what}: {said}", "see that its pods are ready")
            yield line.split()[2]
        finally:
            process.kill()


def certificates(farm: Farm) -> str:
    """All certificates last for some time: those of Secrets, and that which the edge shows."""
    from cryptography.x509 import load_der_x509_certificate, load_pem_x509_certificates

    values, ours = farm.values, farm.values["nativelink_namespace"]
    secrets = [
        (ours, values["nativelink_edge_tls_secret"], "tls.crt", _DAYS),
        (ours, values["nativelink_edge_client_ca_secret"], "ca.crt", _CA_DAYS),
        (ours, values["nativelink_mutual_tls_secret"], "tls.crt", _DAYS),
        (values["nativelink_workers_namespace"], values["nativelink_mutual_tls_secret"], "tls.crt", _DAYS),
    ]
    found: list[tuple[str, datetime, int]] = []
    for namespace, name, key, days in secrets if values["nativelink_edge"] != "none" else secrets[2:]:
        if not name:
            continue
        secret = farm.api.read("v1", "Secret", name, namespace)
        try:
            loaded = load_pem_x509_certificates(b64decode((secret or {})["data"][key]))
        except (KeyError, ValueError):
            raise Fault(f"Secret {namespace}/{name} has no certificate in {key}", "make it (docs/secrets.md)") from None
        found += [(f"{key} of Secret {namespace}/{name}", each.not_valid_after_utc, days) for each in loaded]
    if farm.address and values["nativelink_edge_tls_secret"]:
        edge = load_der_x509_certificate(_presented(farm.address, values["nativelink_hostname"]))
        found.append((f"the certificate at {farm.address}", edge.not_valid_after_utc, _DAYS))
    if not found:
        raise Skipped("the cluster has none")
    late = [(name, end) for name, end, days in found if (end - datetime.now(UTC)).days < days]
    if late:
        text = ", ".join(f"{name} ends on {end:%Y-%m-%d}" for name, end in late)
        raise Fault(text, "renew it (docs/secrets.md, docs/edge.md#tls)")
    name, end, _unused = min(found, key=lambda each: each[1])
    return f"{len(found)}; the first to end is {name}, on {end:%Y-%m-%d}"


def _presented(address: str, name: str) -> bytes:
    host, _unused, port = address.rpartition(":")
    anyone = ssl.create_default_context()
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE  # clients check it; this reads when it ends
    anyone.set_alpn_protocols(["h2"])
    connection = socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS)
    with connection, anyone.wrap_socket(connection, server_hostname=name or host) as tls:
        return tls.getpeercert(binary_form=True) or b""


def gitops(farm: Farm) -> str:
    """The engine has synced the tree that is in this checkout, and says that all is well."""
    values, engine = farm.values, engine_of(farm.api, farm.values)
    if engine is None:
        raise Skipped("gitops_provider is none")
    name = f"nativelink-{values['cluster']}"
    if not engine.found:
        problem = f"there is no {engine.kind} {values['gitops_namespace']}/{name}"
        raise Fault(problem, "run playbooks/connect.yml")
    if not engine.ok:
        raise Fault(f"{engine.kind} {name}: {engine.state}", "docs/alerts/NativeLinkGitOpsFailing.md")
    return f"{engine.name} has synced {engine.commit[:12]}{_compared(values, engine.commit)}"


def _compared(values: Mapping[str, Any], revision: str) -> str:
    """Raise Fault if the tree in this checkout is not that of a commit. Return what else is to be said."""
    folder = Path(values["nativelink_clusters_dir"]) / values["cluster"]
    command = ["git", "-C", str(folder), "diff", "--name-only", revision, "--", "."]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        done = None
    if not done or not folder.is_dir() or "not a git repository" in done.stderr.lower():
        return "; there is no checkout here to compare it with"
    if done.returncode:
        problem = f"the cluster has synced {revision[:12]}, which this checkout does not have ({done.stderr})"
        raise Fault(problem, "git fetch, and run this on the commit that the cluster should have")
    if changed := done.stdout.split():
        problem = f"the cluster has synced {revision[:12]}, which differs from the tree here: {', '.join(changed[:3])}"
        raise Fault(problem, "commit and push the tree, or check that commit out; then wait for the sync")
    return ", the tree that is here"


def cas(farm: Farm) -> str:
    """All CAS pods are ready, and their volumes have room."""
    namespace = farm.values["nativelink_namespace"]
    live = farm.api.read("apps/v1", "StatefulSet", "nativelink-cas", namespace)
    pods = farm.api.pods_of(live) if live else []
    if trouble := not_ready(live):
        raise Fault(f"nativelink-cas: {pod_trouble(pods) or trouble}", "docs/alerts/NativeLinkCASPodDown.md")
    nodes = sorted({pod["spec"]["nodeName"] for pod in pods})
    try:
        summaries = [farm.api.proxied(f"/api/v1/nodes/{node}/proxy/stats/summary") for node in nodes]
    except ApiError as error:
        raise Skipped(f"{len(pods)} pods are ready, but no kubelet tells the room on their volumes: {error}") from None
    return f"{len(pods)} pods are ready; {room(summaries, namespace)}"


def room(summaries: Iterable[Object], namespace: str) -> str:
    """The CAS volumes have room, by the summaries of kubelets. It may be inodes that are short."""
    free = []
    for volume in (each for found in summaries for pod in found.get("pods", ()) for each in pod.get("volume") or ()):
        claim = volume.get("pvcRef") or {}
        if claim.get("namespace") == namespace and claim.get("name", "").startswith("data-nativelink-cas-"):
            for left, whole, what in (("availableBytes", "capacityBytes", "bytes"), ("inodesFree", "inodes", "inodes")):
                if volume.get(whole):
                    free.append((volume[left] / volume[whole], f"{claim['name']} has {{:.0%}} of its {what} left"))
    if not free:
        raise Skipped("no kubelet tells the room on the volumes of the CAS")
    if full := [text.format(share) for share, text in sorted(free) if share < _LEAST_FREE]:
        raise Fault(", ".join(full), "docs/alerts/NativeLinkCASDiskFull.md")
    share, text = min(free)
    return text.format(share)


def prometheus(farm: Farm) -> str:
    """The bundled Prometheus scrapes all that its configuration names."""
    if farm.values["nativelink_prometheus"] != "bundled":
        raise Skipped(f"nativelink_prometheus is {farm.values['nativelink_prometheus']}: look at its targets there")
    live = farm.api.read("apps/v1", "Deployment", "nativelink-prometheus", farm.values["nativelink_namespace"])
    pods = farm.api.pods_of(live) if live else []
    if trouble := not_ready(live):
        raise Fault(f"nativelink-prometheus: {pod_trouble(pods) or trouble}", "docs/alerts/NativeLinkMetricsLost.md")
    answer = bundled_prometheus(farm.api, pods[0])("/api/v1/targets?state=active")
    targets = json.loads(answer)["data"]["activeTargets"]
    if faults := lost(farm.context.prometheus, targets):
        fix = "install what is missing, or remove it from nativelink_prometheus_scrapes (docs/monitoring.md)"
        if len(faults) > 1:
            fix += "; where all but NativeLink's own are missing, Prometheus does not reach the API server"
        raise Fault("; ".join(faults), fix)
    return f"{len(targets)} targets are up"


def lost(settings: Prometheus, targets: Iterable[Object]) -> list[str]:
    """The jobs of the configuration that have no target, or one that is down."""
    where = {each["name"]: f" (pods {each['selector']} in {each['namespace']})" for each in settings.scrapes}
    jobs = [*(each["name"] for each in settings.targets), *where]
    jobs += [f"nativelink-kubelet{path.replace('/', '-')}" for path in settings.kubelet_paths]
    faults = []
    for job in jobs:
        found = [each for each in targets if each["scrapePool"] == job]
        down = [f"{job}: {each['scrapeUrl']} {each['lastError']}" for each in found if each["health"] != "up"]
        faults += down[:1] if found else [f"{job} has no target{where.get(job, '')}"]
    return faults

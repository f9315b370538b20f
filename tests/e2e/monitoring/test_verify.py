"""The playbook `verify` on a farm with an edge, an autoscaler and a Prometheus: it is content, and it finds faults."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from testbed.waiting import until
from testkit.edge import CAS, HOST, NAME
from testkit.farm import secret
from testkit.playbooks import verified
from tests.e2e.monitoring.conftest import Monitored

SKIPPED = {"GitOps": "skipped"}
CHECKS = ("capabilities", "small blobs", "large blob", "wrong bytes", "action results", "strangers", "worker API")
CHECKS += ("pool default", "network default", "CAS", "certificates", "GitOps", "Prometheus")


def verify(farm: Monitored, folder: Path, authority: bytes) -> tuple[int, dict[str, str], str]:
    """Return the exit status, the result of each check, and what was printed of the cluster."""
    (folder / "ca.crt").write_bytes(authority)
    for kind in ("crt", "key"):
        shutil.copy(farm.certificates / "client.pem", folder / f"ann.{kind}")
    asked = {"address": f"{farm.gateway}:443", "certificates_dir": str(folder), "client": "ann", "megabytes": 8}
    variables = json.dumps({f"verify_{name}": value for name, value in asked.items()})
    run = farm.site.run("--extra-vars", variables, playbook="verify")
    told = run.summary[NAME]
    noted = farm.where.run("get", "namespace", CAS, "-o", "jsonpath={.metadata.annotations}")
    assert json.loads(noted)["nativelink.gitops/verified"].endswith("Z failed" if run.status else "Z ok")
    return run.status, verified(told), told


@contextmanager
def faults(farm: Monitored) -> Iterator[None]:
    """Remove the workers' policies, kube-state-metrics and a collector, and let the edge's certificate end soon."""
    certificate, key = farm.servers.issue(HOST, days=5)
    states = ("-n", "kube-system", "scale", "deployment/kube-state-metrics")
    before = json.loads(farm.where.run("-n", CAS, "get", "secret", "edge-tls", "-o", "json"))
    farm.run("delete", "networkpolicies", "--all")
    farm.where.run(*states, "--replicas=0")
    farm.where.run("-n", CAS, "scale", "deployment/nativelink-collector-workers", "--replicas=0")
    farm.where.apply(secret("edge-tls", "kubernetes.io/tls", {"tls.crt": certificate, "tls.key": key}))
    try:
        until("a target to be gone", lambda: "nativelink-kube-state-metrics" not in farm.targets(), 60)
        until("a target to be down", lambda: farm.targets()["nativelink-workers"] == ["down"], 60)
        yield
    finally:
        farm.where.run(*states, "--replicas=1")
        farm.where.apply({**before, "metadata": {"name": "edge-tls", "namespace": CAS}})
        farm.apply_folder()
        farm.where.rolled_out(CAS, "deployment/nativelink-collector-workers")


def test_it_is_content_with_a_farm_and_finds_what_is_wrong(farm: Monitored, tmp_path: Path) -> None:
    good = dict.fromkeys(CHECKS, "ok") | SKIPPED
    status, found, told = verify(farm, tmp_path, (farm.certificates / "servers.crt").read_bytes())
    assert (status, found) == (0, good), told
    with faults(farm):
        status, found, told = verify(farm, tmp_path, farm.servers.pem)
    wrong = ("network default", "certificates", "Prometheus")
    assert (status, found) == (2, good | dict.fromkeys(wrong, "FAILED")), told
    for fault in (
        r"network default: an action of pool default reaches the API server \(",
        r"certificates: tls.crt of Secret nativelink/edge-tls ends on \d{4}-\d\d-\d\d, .+; renew it",
        r"Prometheus: nativelink-workers: http://nativelink-collector-workers:9465/metrics .+",
        r"; nativelink-kube-state-metrics has no target \(pods app.kubernetes.io/name=kube-state-metrics in ",
    ):
        assert re.search(fault, told), told

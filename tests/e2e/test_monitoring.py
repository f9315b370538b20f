"""Metrics and alerts on a real node: what all components really send, collected by the tree's own Prometheus.

The farm has a scheduler in memory, KEDA and an edge. All times of its monitoring are a tenth of what a user has, so
that each alert can be set off by its fault and seen to end. The tests share one cluster and run in the order of the
file.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from testbed import components, manifests
from testbed.cluster import Cluster
from testbed.waiting import until
from tests.e2e import chain
from tests.e2e.authority import Authority
from tests.e2e.chain import Load
from tests.e2e.edge import CAS, HOST, NAME, Edge, opened, secret
from tests.e2e.site import pool

Object = dict[str, Any]
WORKERS = "nativelink-workers"
HURRY = 10
# Each job, and the number of its targets.
JOBS = {
    "nativelink-collector": 1,
    "nativelink-reported": 1,
    "nativelink-edge": 1,
    "nativelink-keda": 1,
    "nativelink-kube-state-metrics": 1,
    "nativelink-kubelet": 2,
}


@dataclass(frozen=True)
class Monitored:
    """A farm with an edge, and its Prometheus."""

    edge: Edge

    @property
    def where(self) -> Cluster:
        return self.edge.where

    def ask(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer of Prometheus' API."""
        address = self.where.service_address(CAS, "nativelink-prometheus")
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"http://{address}:9090/api/v1/{path}?{query}", timeout=10) as answer:
            return json.load(answer)["data"]

    def series(self, query: str) -> list[Object]:
        """Return the result of a query."""
        return list(self.ask("query", query=query)["result"])

    def targets(self) -> dict[str, list[str]]:
        """Return the health of the targets of each job."""
        found: dict[str, list[str]] = {}
        for each in self.ask("targets", state="active")["activeTargets"]:
            found.setdefault(each["labels"]["job"], []).append(each["health"])
        return found

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire, without the common prefix."""
        alerts = self.ask("alerts")["alerts"]
        return {each["labels"]["alertname"].removeprefix("NativeLink") for each in alerts if each["state"] == "firing"}

    def fires(self, *names: str, seconds: float = 120) -> None:
        """Wait until each of these alerts has fired since the call. Other alerts may fire too."""
        seen: set[str] = set()

        def look() -> bool:
            seen.update(self.firing())
            return seen >= set(names)

        began = time.monotonic()
        until(f"the alerts {', '.join(names)}", look, seconds, lambda: f": {sorted(seen)} fired")
        print(f"{', '.join(names)} after {time.monotonic() - began:.0f} s; all: {', '.join(sorted(seen))}")

    def quiet(self, *allowed: str, seconds: float = 150) -> None:
        """Wait until no alert fires, except for allowed ones."""
        until("all alerts to end", lambda: self.firing() <= set(allowed), seconds, lambda: f": {self.firing()} fire")

    def scale(self, workload: str, replicas: int) -> None:
        self.where.run("-n", CAS, "scale", workload, f"--replicas={replicas}")

    @contextlib.contextmanager
    def without(self, workload: str, replicas: int = 1) -> Iterator[None]:
        """Stop all pods of a workload, and start this many afterwards."""
        self.scale(workload, 0)
        try:
            yield
        finally:
            self.scale(workload, replicas)
            self.where.rolled_out(CAS, workload)

    def worker(self) -> str:
        """Return the name of a worker that is ready."""
        pods = ("-n", WORKERS, "get", "pods", "--field-selector=status.phase=Running", "-o", "name")
        return self.where.run(*pods, "-l", "app.kubernetes.io/component=worker").split()[0].removeprefix("pod/")

    def queue(self) -> Load:
        """Return a load of actions that no worker can run."""
        return Load(self.address("scheduler"), self.address("cas"), 10, self.address("scheduler-workers"))

    def address(self, name: str) -> str:
        return self.where.service_address(CAS, f"nativelink-{name}")

    def act(self, script: str, **more: str) -> subprocess.Popen[str]:
        """Start a client whose action runs a shell script."""
        options = {"timeout": "60", "retries": "0", **more}
        command = f"--command={json.dumps(['/bin/sh', '-c', script])}"
        return self.edge.load(
            "--platform=pool=default", command, *(f"--{key}={value}" for key, value in options.items())
        )


def hurried(text: str) -> str:
    """Divide all durations of alerting rules by HURRY: waits, windows and offsets."""
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86400}

    def shorter(found: re.Match[str]) -> str:
        return f"{found[1]}{max(1, round(int(found[2]) * seconds[found[3]] / HURRY))}s"

    return re.sub(r"(\[|offset |for: \"?)(\d+)([smhd])(?![a-z0-9])", shorter, text)


def hurry(tree: Path) -> None:
    """Shorten the times of a tree's monitoring."""
    for path, change in (
        ("monitoring/alert-rules.yaml", hurried),
        (
            "monitoring/prometheus.yaml",
            lambda text: re.sub(r"(scrape|evaluation)_interval: 15s", r"\1_interval: 2s", text),
        ),
        ("monitoring/collector.yaml", lambda text: text.replace("metric_expiration: 60s", "metric_expiration: 8s")),
        ("cas/statefulset.yaml", lambda text: text.replace('"15000"', '"2000"')),
        ("worker/default/deployment.yaml", lambda text: text.replace('"15000"', '"2000"')),
    ):
        file = tree / "rendered" / path
        before = file.read_text()
        file.write_text(change(before))
        assert file.read_text() != before, f"{path} has no time to shorten"


def prepare(where: Cluster) -> None:
    """Install what the farm finds on a cluster: KEDA and kube-state-metrics."""
    wanted = ("keda", "collector", "prometheus", "kube-state-metrics")
    where.load(*(image for name in wanted for image in components.images_of(name)))
    chain.install_keda(where)
    where.run("apply", "--server-side", "-f", str(manifests.path("kube-state-metrics")))


def api_server(where: Cluster) -> Object:
    """Return a policy that lets Prometheus reach the API server, whose port here is neither 443 nor 6443."""
    (port,) = where.run("get", "endpointslices", "kubernetes", "-o", "jsonpath={.ports[*].port}").split()
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "api-server", "namespace": CAS},
        "spec": {
            "podSelector": {"matchLabels": {"app.kubernetes.io/component": "prometheus"}},
            "policyTypes": ["Egress"],
            "egress": [{"ports": [{"protocol": "TCP", "port": int(port)}]}],
        },
    }


@pytest.fixture(scope="module")
def farm(state: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    variables = {
        "keda_install": "existing",
        "nativelink_scaling": "keda",
        "nativelink_worker_pools": [
            pool("default", slots=2, min_replicas=1, max_replicas=2, longest_action="2m", scratch_size="1Gi")
        ],
        "nativelink_scheduler_worker_timeout": 5,
        "nativelink_metrics": ["scheduler", "cas", "worker"],
        "nativelink_prometheus": "bundled",
        "nativelink_prometheus_scrapes": ["edge", "keda", "cluster"],
    }
    with opened("e2e-monitoring", tmp_path_factory.mktemp("monitoring"), prepare, **variables) as edge:
        chain.await_keda(edge.where)
        edge.where.apply(chain.this_machine(edge.where, CAS), api_server(edge.where))
        hurry(edge.site.tree_of(NAME))
        edge.apply()
        edge.ready()
        edge.where.rolled_out(CAS, "deployment/nativelink-collector", "deployment/nativelink-prometheus")
        yield Monitored(edge)


def test_all_targets_are_up(farm: Monitored) -> None:
    wanted = {job: ["up"] * number for job, number in JOBS.items()}
    until("all targets to be up", lambda: farm.targets() == wanted, 120, lambda: f": {farm.targets()}")


def test_no_alert_fires_under_normal_load(farm: Monitored) -> None:
    farm.quiet("CertificateExpiry")  # that of the tests is valid for a day
    seen: set[str] = set()
    with farm.edge.load("--platform=pool=default", "--actions=100", "--concurrency=3", "--seconds=0-2") as client:
        while client.poll() is None:
            seen |= farm.firing()
            time.sleep(1)
        assert client.returncode == 0, client.communicate()
    assert seen <= {"CertificateExpiry"}


def test_a_certificate_that_expires_soon(farm: Monitored) -> None:
    farm.fires("CertificateExpiry", seconds=400)
    certificate, key = Authority("Servers of the tests").issue(HOST, days=90)
    farm.where.apply(secret("edge-tls", "kubernetes.io/tls", {"tls.crt": certificate, "tls.key": key}))
    farm.quiet()


def test_actions_that_no_worker_runs(farm: Monitored) -> None:
    with farm.queue() as load:
        load.hold(10)
        farm.fires("SchedulerNotMatching", "PoolAtMaximum", seconds=200)
        load.hold(0)
    farm.quiet()


def test_a_scheduler_that_is_gone(farm: Monitored) -> None:
    with farm.without("deployment/nativelink-scheduler"):
        farm.fires("SchedulerDown", "DemandLost", "KEDAFallback", "MetricsLost", seconds=200)
    farm.quiet()


def test_a_cas_pod_that_is_gone(farm: Monitored) -> None:
    farm.where.run("cordon", "real-1")
    try:
        farm.where.run("-n", CAS, "delete", "pod", "nativelink-cas-1", "--wait=false")
        farm.fires("CASPodDown")
    finally:
        farm.where.run("uncordon", "real-1")
    farm.quiet()

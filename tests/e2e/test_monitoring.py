"""Metrics on a real node: what all components really send, collected by the tree's own Prometheus.

The farm has a scheduler in memory, KEDA and an edge. The alerts of the tree are evaluated with shorter times, and each
is set off by its fault. The tests share one cluster and run in the order of the file.
"""

from __future__ import annotations

import json
import os
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from testbed import components, manifests
from testbed.cluster import Cluster
from testbed.waiting import patient, until
from tests.e2e import chain
from tests.e2e.edge import Edge, opened
from tests.e2e.site import pool

Object = dict[str, Any]
SPACE, WORKERS = "nativelink", "nativelink-workers"
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
        address = self.where.service_address(SPACE, "nativelink-prometheus")
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


def prepare(where: Cluster) -> None:
    """Install what the farm finds on a cluster: KEDA and kube-state-metrics."""
    wanted = ("keda", "collector", "prometheus", "kube-state-metrics")
    where.load(*(image for name in wanted for image in components.images_of(name)))
    chain.install_keda(where)
    where.run("apply", "--server-side", "-f", str(manifests.path("kube-state-metrics")))


def api_server(where: Cluster) -> Object:
    """Return a policy that lets Prometheus reach the API server, whose port here is neither 443 nor 6443."""
    (ports,) = where.run("get", "endpointslices", "kubernetes", "-o", "jsonpath={.ports[*].port}").split()
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "api-server", "namespace": SPACE},
        "spec": {
            "podSelector": {"matchLabels": {"app.kubernetes.io/component": "prometheus"}},
            "policyTypes": ["Egress"],
            "egress": [{"ports": [{"protocol": "TCP", "port": int(ports)}]}],
        },
    }


@pytest.fixture(scope="module")
def farm(state: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    variables = {
        "keda_install": "existing",
        "nativelink_scaling": "keda",
        "nativelink_worker_pools": [pool("default", slots=2, min_replicas=1, max_replicas=2, longest_action="2m")],
        "nativelink_metrics": ["scheduler", "cas", "worker"],
        "nativelink_prometheus": "bundled",
        "nativelink_prometheus_scrapes": ["edge", "keda", "cluster"],
    }
    with opened("e2e-monitoring", tmp_path_factory.mktemp("monitoring"), prepare, **variables) as edge:
        chain.await_keda(edge.where)
        edge.where.apply(chain.this_machine(edge.where, SPACE), api_server(edge.where))
        edge.where.rolled_out(SPACE, "deployment/nativelink-collector", "deployment/nativelink-prometheus")
        yield Monitored(edge)


def test_all_targets_are_up(farm: Monitored) -> None:
    wanted = {job: ["up"] * number for job, number in JOBS.items()}
    until("all targets to be up", lambda: farm.targets() == wanted, 120, lambda: f": {farm.targets()}")


def test_record(farm: Monitored) -> None:
    with farm.edge.load("--platform=pool=default", "--actions=20", "--seconds=0-1") as client:
        print(client.communicate(timeout=patient(120))[0][:200])
    if folder := os.environ.get("MONITORING_RECORD"):
        names = farm.ask("label/__name__/values")
        Path(folder, "names.json").write_text(json.dumps(names))
        everything = farm.series('{__name__=~".+"}')
        Path(folder, "everything.json").write_text(json.dumps(everything))

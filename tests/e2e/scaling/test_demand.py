"""The loss of each source of the demand, which never removes a worker.

The workers are fake. The tests kill each source of a farm with a scheduler in memory and the bundled Prometheus. The
protected pools keep their workers, and a pool without the protection beside them loses workers. For a farm on Redis see
test_scaling.py, and for the collector alone tests/e2e/test_collector.py.
"""

import http.server
import json
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from testbed.cluster import HPA_SYNC, Cluster
from testkit.client import Load
from testkit.farm import Farm, await_keda
from testkit.git_server import address_for
from testkit.prometheus import Alerts
from testkit.trees import resource
from tests.e2e.scaling.conftest import STATIC, Watched, follower

Object = dict[str, Any]
QUEUE = "nativelink_scheduler_queue_depth"

MEMORY = [
    follower("held"),
    follower("careless"),
    follower("asked", query=QUEUE),
    follower("trusting", query=QUEUE),
    follower("zero", min_replicas=0, max_replicas=5, cooldown_period=5),
    follower("patient", min_replicas=0, max_replicas=5),
    follower("plain", scaling="hpa"),
]


@pytest.fixture(scope="module")
def memory(where: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Apply a farm in memory, and remove the protection of the pools of the counter-runs."""
    farm = Farm(where, "memory", tmp_path_factory.mktemp("memory"))
    monitoring = {"nativelink_prometheus": "bundled", "nativelink_metrics_namespaces": ["monitoring"]}
    farm.apply(MEMORY, nativelink_scaling="keda", **monitoring)
    farm.ready("deployment/nativelink-collector", "deployment/nativelink-prometheus")
    with farm.deployments() as record:
        made = Watched.of(farm, record)
        made.patch("careless", STATIC)
        asked = json.loads(made.run("get", "scaledobject", "nativelink-worker-asked", "-o", "json"))
        (trigger,) = asked["spec"]["triggers"]
        del trigger["metadata"]["ignoreNullValues"]
        made.patch("trusting", {"triggers": [trigger]})
        yield made


def test_a_pool_at_zero_gets_a_worker_when_its_source_does_not_answer(memory: Watched) -> None:
    """Builds do not wait for broken monitoring, because one worker runs them."""
    memory.become(zero=0, held=1)
    with memory.without("deployment/nativelink-collector", killed=True) as began:
        memory.become(zero=1, seconds=90)
        assert memory.moved("held", began) == [1]
    memory.become(zero=0, seconds=90)


@pytest.fixture(scope="module")
def busy(memory: Watched) -> Iterator[Load]:
    """Queue 20 actions at the scheduler in memory, and wait until the pools have followed."""
    memory.become(zero=0, held=1)
    with memory.load() as load:
        load.hold(20)
        memory.become(held=10, careless=10, asked=10, trusting=10, patient=5)
        yield load


def test_a_lost_collector_removes_no_worker(memory: Watched, busy: Load) -> None:
    with memory.without("deployment/nativelink-collector", killed=True) as began:
        # The counter-runs: a static fallback, and KEDA's default for a query without an answer.
        memory.become(careless=2, trusting=1, seconds=90)
        memory.fall_back("held", "asked", "patient")
        time.sleep(2 * HPA_SYNC)
        assert memory.moved("held", began) == [10]
        assert memory.moved("asked", began) == [10]
        assert memory.moved("patient", began) == [5]
    memory.become(held=10, careless=10, asked=10, trusting=10)


def test_a_lost_prometheus_removes_no_worker(memory: Watched, busy: Load) -> None:
    memory.patch("trusting", STATIC)
    with memory.without("deployment/nativelink-prometheus", killed=True) as began:
        memory.become(trusting=2, seconds=90)
        memory.fall_back("asked")
        time.sleep(2 * HPA_SYNC)
        assert memory.moved("asked", began) == [10]
        assert memory.moved("held", began) == [10], "this pool does not need Prometheus"


def test_a_restart_of_keda_removes_no_worker(memory: Watched, busy: Load) -> None:
    """The HPA keeps the replicas while KEDA does not answer, and then follows again.

    It does so in every configuration, so this test does not have a pool as its counter-run.
    """
    keda = ("-n", "keda", "scale", "deployment/keda-operator", "deployment/keda-metrics-apiserver")
    began = time.monotonic()
    memory.where.run(*keda, "--replicas=0")
    time.sleep(2 * HPA_SYNC)
    memory.where.run(*keda, "--replicas=1")
    await_keda(memory.where)
    assert memory.moved("held", began) == [10]
    busy.hold(30)
    memory.become(held=15)  # KEDA works again
    busy.hold(20)
    memory.become(held=10)


# A stand-in for a metrics adapter, because prometheus-adapter is not available here.


class Adapter(http.server.BaseHTTPRequestHandler):
    """A server of external metrics from Prometheus, as a metrics adapter is."""

    prometheus: Alerts

    def do_GET(self) -> None:
        api = "external.metrics.k8s.io/v1beta1"
        said: Object = {"kind": "APIResourceList", "groupVersion": api, "resources": []}
        if f"/{QUEUE}" in self.path:
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            items = [
                {"metricName": QUEUE, "metricLabels": {}, "timestamp": now, "value": each["value"][1]}
                for each in self.prometheus.series(QUEUE)
            ]
            said = {"kind": "ExternalMetricValueList", "apiVersion": api, "metadata": {}, "items": items}
        text = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def adapter(memory: Watched) -> Iterator[None]:
    """Register the adapter in place of KEDA's, because a cluster has only one."""
    where = memory.where
    machine = address_for(where)
    Adapter.prometheus = memory
    server = http.server.ThreadingHTTPServer((machine, 0), Adapter)
    pki = where.home / "kwok" / "clusters" / where.name / "pki"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki / "admin.crt", pki / "admin.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_address[1]
    where.run("-n", "keda", "scale", "deployment", "--all", "--replicas=0")
    service = {"name": "adapter", "namespace": "default"}
    slices = {
        "metadata": {"labels": {"kubernetes.io/service-name": "adapter"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [machine], "conditions": {"ready": True}}],
        "ports": [{"port": port, "protocol": "TCP"}],
    }
    group, version = "external.metrics.k8s.io", "v1beta1"
    api = {
        "group": group,
        "version": version,
        "groupPriorityMinimum": 100,
        "versionPriority": 100,
        "insecureSkipTLSVerify": True,
        "caBundle": None,
        "service": {**service, "port": 443},
    }
    where.apply(
        resource("v1/Service", **service, spec={"ports": [{"port": 443}]}),
        resource("discovery.k8s.io/v1/EndpointSlice", **service, **slices),
        resource("apiregistration.k8s.io/v1/APIService", f"{version}.{group}", spec=api),
    )
    yield
    server.shutdown()


def test_a_plain_hpa_follows_the_demand(memory: Watched, busy: Load, adapter: None) -> None:
    memory.become(plain=10, seconds=90)
    busy.hold(0)
    memory.become(plain=1, seconds=60)

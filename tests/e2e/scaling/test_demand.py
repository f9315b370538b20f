"""The sources of the demand, and the loss of each, which never removes a worker.

The tests of the collector run processes on this machine. The other tests run on a real node with fake workers. One
entry has a scheduler in memory and the bundled Prometheus, and another entry has Redis. The tests kill each source. The
protected pools keep their workers, and a pool without the protection beside them loses workers.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import ssl
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render

from testbed import build, cluster, components, manifests, node
from testbed.cluster import Cluster
from testbed.ports import free_port
from testbed.waiting import until
from testkit import chain, nativelink
from testkit.alerting import Prometheus, api_server, hurry
from testkit.chain import FAKE, Entry, Gauge, Load, Record, secret
from testkit.site import pool
from testkit.trees import values_of

Object = dict[str, Any]
SLOTS = 2
QUEUE = "nativelink_scheduler_queue_depth"
DOWN_AT_ONCE = {"stabilizationWindowSeconds": 0, "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]}


# The collector alone ---------------------------------------------------------------------------------------------


class Source:
    """A collector with the rendered configuration and a scheduler that reports to it every second, on this machine."""

    def __init__(self, folder: Path, edit: Callable[[Object], None] = lambda config: None) -> None:
        self.otlp, self.metrics = free_port(), free_port()
        config = yaml.safe_load(render.tree(values_of())["monitoring/collector.yaml"])
        config["receivers"]["otlp/scheduler"]["protocols"]["grpc"]["endpoint"] = f"127.0.0.1:{self.otlp}"
        config["exporters"]["prometheus/demand"]["endpoint"] = f"127.0.0.1:{self.metrics}"
        config["exporters"]["prometheus/reported"]["endpoint"] = f"127.0.0.1:{free_port()}"
        config["extensions"]["health_check"]["endpoint"] = f"127.0.0.1:{free_port()}"
        edit(config)
        (folder / "collector.yaml").write_text(yaml.safe_dump(config))
        self.client, self.cas = free_port(), free_port()
        self.folder, self.running = folder, []

    def start(self) -> None:
        program = build.program("otelcol")
        with (self.folder / "collector.log").open("wb") as log:
            command = [program, f"--config={self.folder}/collector.yaml"]
            self.running.append(subprocess.Popen(command, stdout=log, stderr=log))
        until("the collector to listen", lambda: self.listens(self.metrics), 30, self.log)
        self._nativelink("cas", self.cas, {"cas": [{"instance_name": "main", "cas_store": "A"}]})
        self.scheduler = self.start_scheduler()

    def start_scheduler(self) -> subprocess.Popen[bytes]:
        services = {
            "ac": [{"instance_name": "main", "ac_store": "B"}],
            "execution": [{"instance_name": "main", "cas_store": "A", "scheduler": "MAIN"}],
            "capabilities": [{"instance_name": "main", "remote_execution": {"scheduler": "MAIN"}}],
        }
        # A queued action counts until its client has been gone for this time. The default is a minute.
        simple = {"supported_platform_properties": {"pool": "exact"}, "client_action_timeout_s": 15}
        return self._nativelink("scheduler", self.client, services, schedulers=[{"name": "MAIN", "simple": simple}])

    def _nativelink(self, name: str, port: int, services: Object, **more: object) -> subprocess.Popen[bytes]:
        stores: list[Object] = [{"name": "A", "memory": {}}, {"name": "B", "memory": {}}]
        if name != "cas":  # the client uploads to the CAS, where the scheduler looks for the action
            endpoints = [{"address": f"grpc://127.0.0.1:{self.cas}"}]
            stores = [
                {"name": each, "grpc": {"instance_name": "main", "endpoints": endpoints, "store_type": kind}}
                for each, kind in (("A", "cas"), ("B", "ac"))
            ]
        config = {
            "stores": stores,
            "servers": [
                {"name": name, "listener": {"http": {"socket_address": f"127.0.0.1:{port}"}}, "services": services}
            ],
            **more,
        }
        if name == "cas":
            services |= {
                "ac": [{"instance_name": "main", "ac_store": "B"}],
                "bytestream": [{"instance_name": "main", "cas_store": "A"}],
                "capabilities": [{"instance_name": "main"}],
            }
        telemetry = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.otlp}",
            "OTEL_METRIC_EXPORT_INTERVAL": "1000",
        }
        started = nativelink.started(self.folder / name, config, **(telemetry if name != "cas" else {}))
        self.running.append(started)
        until(f"{name} to listen", lambda: self.listens(port), 30, self.log)
        return started

    def log(self) -> str:
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text()[-1000:]}" for path in logs)

    @staticmethod
    def listens(port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def stages(self) -> dict[str, list[float]]:
        """Return the values of each stage. A stage with several values has series of several processes."""
        found: dict[str, list[float]] = {}
        for stage, value in Gauge(f"127.0.0.1:{self.metrics}").lines():
            found.setdefault(stage, []).append(value)
        return found

    @contextlib.contextmanager
    def queued(self, actions: int) -> Iterator[None]:
        load = Load("", "")
        load.command = [part for part in load.command if "-endpoint" not in part]
        load.command += [f"--execute-endpoint=grpc://127.0.0.1:{self.client}"]
        load.command += [f"--cas-endpoint=grpc://127.0.0.1:{self.cas}"]
        with load:
            load.hold(actions)
            yield


@contextlib.contextmanager
def source(folder: Path, edit: Callable[[Object], None] = lambda config: None) -> Iterator[Source]:
    made = Source(folder, edit)
    try:
        made.start()
        yield made
    finally:
        for process in made.running:
            process.kill()
            process.wait()


def without_zeros(config: Object) -> None:
    config["service"]["pipelines"]["metrics/demand"]["processors"].remove("transform/demand")


def remembering(config: Object) -> None:
    """Keep the series of each process apart, and for half a minute after its end."""
    first = config["processors"]["transform/demand"]["metric_statements"][0]["statements"]
    first.remove('delete_key(resource.attributes, "service.instance.id")')
    config["exporters"]["prometheus/demand"]["metric_expiration"] = "30s"


def test_both_stages_have_a_value_before_the_first_action(tmp_path: Path) -> None:
    with source(tmp_path) as found:
        until("both stages", lambda: found.stages() == {"queued": [0], "executing": [0]}, 20, found.log)
        with found.queued(7):
            until("the demand", lambda: found.stages() == {"queued": [7], "executing": [0]}, 20, found.log)
        until("no demand", lambda: found.stages() == {"queued": [0], "executing": [0]}, 40, found.log)
        found.scheduler.kill()
        # Without a scheduler the demand is unknown, which is not the same as a demand of zero.
        until("the series to be gone", lambda: found.stages() == {}, 20, found.log)


def test_without_the_zeros_a_stage_is_missing(tmp_path: Path) -> None:
    """This is the counter-run of the test above."""
    with source(tmp_path, without_zeros) as found:
        time.sleep(7)
        assert found.stages() == {}
        with found.queued(7):
            until("the demand", lambda: found.stages() == {"queued": [7]}, 20, found.log)


@pytest.mark.parametrize("edit", [lambda config: None, remembering], ids=["ours", "counter-run"])
def test_a_restarted_scheduler_takes_the_place_of_the_dead_one(tmp_path: Path, edit: Callable[[Object], None]) -> None:
    with source(tmp_path, edit) as found:
        with found.queued(7):
            until("the demand", lambda: found.stages().get("queued") == [7], 20, found.log)
            found.scheduler.kill()
            found.scheduler.wait()
        found.start_scheduler()
        seen: list[list[float]] = []
        ended = time.monotonic() + 12
        while time.monotonic() < ended:
            seen.append(found.stages().get("queued", []))
            time.sleep(0.2)
    # From the first report of the new process on, its value is the only one.
    first_report = next(index for index, values in enumerate(seen) if 0 in values)
    expected = edit is not remembering
    assert all(values == [0] for values in seen[first_report:]) is expected, seen


# On a cluster ----------------------------------------------------------------------------------------------------


def follower(name: str, **more: Any) -> Object:
    """Return a pool of fake workers that scales up and down at once: 20 actions need 10 workers."""
    return pool(
        name, slots=SLOTS, **{"min_replicas": 1, "max_replicas": 20, "scale_down": DOWN_AT_ONCE, **FAKE, **more}
    )


MEMORY = [
    follower("held"),
    follower("careless"),
    follower("asked", query=QUEUE),
    follower("trusting", query=QUEUE),
    follower("zero", min_replicas=0, max_replicas=5, cooldown_period=5),
    follower("patient", min_replicas=0, max_replicas=5),
    follower("plain", scaling="hpa"),
]
SHARED = [follower("small"), follower("large"), follower("careless")]
STATIC = {"fallback": {"failureThreshold": 3, "replicas": 2, "behavior": "static"}}


def queue_depths(prometheus: str) -> list[Object]:
    """Return the series of the queue depth that a Prometheus has now. Raise OSError if Prometheus does not answer."""
    query = urllib.parse.urlencode({"query": QUEUE})
    with urllib.request.urlopen(f"http://{prometheus}:9090/api/v1/query?{query}", timeout=5) as answer:
        return list(json.load(answer)["data"]["result"])


class Watched:
    """An entry, a record of its pools, and its Prometheus."""

    def __init__(self, entry: Entry, record: Record) -> None:
        self.entry, self.record = entry, record
        self.prometheus = Prometheus(entry.where, entry.name)

    def replicas(self, *names: str) -> dict[str, int]:
        return {name: self.record.replicas(f"nativelink-worker-{name}") for name in names}

    def become(self, seconds: float = 60, **wanted: int) -> None:
        """Wait until each of these pools has this many workers."""
        what = f"pools of {self.entry.name} to be {wanted}"
        until(what, lambda: self.replicas(*wanted) == wanted, seconds, lambda: self.explained(*wanted))

    def explained(self, *names: str) -> str:
        """Return the number of workers of these pools, and what all HPAs of the entry say about their metrics."""
        columns = 'custom-columns=HPA:.metadata.name,METRICS:.status.conditions[?(@.type=="ScalingActive")].message'
        hpas = self.entry.where.run("-n", self.entry.workers, "get", "hpa", "-o", columns)
        return f": they are {self.replicas(*names)}\n{hpas}"

    def moved(self, name: str, since: float) -> list[int]:
        """Return each number of workers that a pool had since a time."""
        return [replicas for _, replicas in self.record.steps(f"nativelink-worker-{name}", since)]

    def recorded(self) -> dict[str, float]:
        """Return the queue depth of each pool from the entry's Prometheus. A series without a pool has the name ""."""
        found = queue_depths(self.entry.address("nativelink-prometheus"))
        return {each["metric"].get("pool", ""): float(each["value"][1]) for each in found}

    def patch(self, name: str, spec: Object) -> None:
        change = ("--type=merge", "-p", json.dumps({"spec": spec}))
        self.entry.where.run("-n", self.entry.workers, "patch", "scaledobject", f"nativelink-worker-{name}", *change)

    def fall_back(self, *names: str) -> None:
        """Wait until KEDA reports that it uses the fallback of these pools."""
        path = 'jsonpath={.status.conditions[?(@.type=="Fallback")].status}'

        def fallen(name: str) -> bool:
            scaled = ("get", "scaledobject", f"nativelink-worker-{name}", "-o", path)
            return self.entry.where.run("-n", self.entry.workers, *scaled) == "True"

        for name in names:
            until(f"the fallback of pool {name}", lambda name=name: fallen(name), 90)  # type: ignore[misc]

    def scale(self, workload: str, replicas: int) -> None:
        self.entry.where.run("-n", self.entry.name, "scale", workload, f"--replicas={replicas}")

    @contextlib.contextmanager
    def without(self, workload: str) -> Iterator[float]:
        """Kill all pods of a workload at once, yield the time, and start the workload again afterwards."""
        self.scale(workload, 0)
        name = workload.partition("/")[2].removeprefix("nativelink-")
        pods = f"app.kubernetes.io/component={name}"
        self.entry.where.run("-n", self.entry.name, "delete", "pod", "-l", pods, "--force", "--grace-period=0")
        try:
            yield time.monotonic()
        finally:
            self.scale(workload, 1)
            self.entry.where.rolled_out(self.entry.name, workload)


@pytest.fixture(scope="module")
def where(state: Path) -> Iterator[Cluster]:
    with cluster.fresh("e2e-demand", nodes=3, real=True) as made:
        wanted = ("keda", "collector", "redis", "redis-exporter", "prometheus", "kube-state-metrics")
        made.load(*(image for name in wanted for image in components.images_of(name)))
        chain.install_keda(made)
        made.run("apply", "--server-side", "-f", str(manifests.path("kube-state-metrics")))
        yield made


@pytest.fixture(scope="module")
def both(where: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Watched, Watched]]:
    """Apply both entries, and wait until they are ready."""
    memory = Entry(where, "memory", tmp_path_factory.mktemp("memory"))
    shared = Entry(where, "shared", tmp_path_factory.mktemp("shared"))
    memory.apply(MEMORY, nativelink_prometheus="bundled", nativelink_metrics_namespaces=["monitoring"])
    where.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shared"}},
        secret("nativelink-redis", "Opaque", {"password": b"of-a-test"}, "shared"),
    )
    small = {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}}
    shared.apply(
        SHARED,
        nativelink_scheduler_backend="redis",
        nativelink_redis_resources=small,
        nativelink_redis_volume_size="1Gi",
        nativelink_prometheus="bundled",
        nativelink_prometheus_scrapes=["cluster"],
    )
    hurry(shared.folder)
    shared.apply_folder()
    # The playbook grants what Prometheus may read, but no playbook has run here.
    where.run(
        "create",
        "clusterrolebinding",
        "prometheus",
        "--clusterrole=cluster-admin",
        "--serviceaccount=shared:nativelink-prometheus",
    )
    where.apply(api_server(where, "shared"))
    chain.await_keda(where)
    memory.await_ready()
    where.rolled_out("memory", "deployment/nativelink-prometheus")
    parts = ("statefulset/nativelink-redis", "deployment/nativelink-scheduler", "deployment/nativelink-demand")
    where.rolled_out("shared", *parts)
    with memory.deployments() as of_memory, shared.deployments() as of_shared:
        yield Watched(memory, of_memory), Watched(shared, of_shared)


@pytest.fixture(scope="module")
def memory(both: tuple[Watched, Watched]) -> Watched:
    """Return the entry in memory, after removing the protection of the pools of the counter-runs."""
    watched = both[0]
    watched.patch("careless", STATIC)
    asked = json.loads(
        watched.entry.where.run(
            "-n", watched.entry.workers, "get", "scaledobject", "nativelink-worker-asked", "-o", "json"
        )
    )
    (trigger,) = asked["spec"]["triggers"]
    del trigger["metadata"]["ignoreNullValues"]
    watched.patch("trusting", {"triggers": [trigger]})
    return watched


def test_a_pool_at_zero_gets_a_worker_when_its_source_does_not_answer(memory: Watched) -> None:
    """Builds do not wait for broken monitoring, because one worker runs them."""
    memory.become(zero=0, held=1)
    with memory.without("deployment/nativelink-collector") as began:
        memory.become(zero=1, seconds=90)
        print(f"a worker {time.monotonic() - began:.0f} s after the loss")
        assert memory.moved("held", began) == [1]
    memory.become(zero=0, seconds=90)
    print([(f"{at - began:.0f}", replicas) for at, replicas in memory.record.steps("nativelink-worker-zero")])


@pytest.fixture(scope="module")
def busy(memory: Watched) -> Iterator[Load]:
    """Queue 20 actions at the scheduler in memory, and wait until the pools have followed."""
    memory.become(zero=0, held=1)
    with memory.entry.load() as load:
        load.hold(20)
        memory.become(held=10, careless=10, asked=10, trusting=10, patient=5)
        yield load


def test_a_lost_collector_removes_no_worker(memory: Watched, busy: Load) -> None:
    with memory.without("deployment/nativelink-collector") as began:
        # The counter-runs: a static fallback, and KEDA's default for a query without an answer.
        memory.become(careless=2, trusting=1, seconds=90)
        memory.fall_back("held", "asked", "patient")
        time.sleep(20)  # longer than the sync period of the HPA
        assert memory.moved("held", began) == [10]
        assert memory.moved("asked", began) == [10]
        assert memory.moved("patient", began) == [5]
    memory.become(held=10, careless=10, asked=10, trusting=10)


def test_a_lost_prometheus_removes_no_worker(memory: Watched, busy: Load) -> None:
    memory.patch("trusting", STATIC)
    with memory.without("deployment/nativelink-prometheus") as began:
        memory.become(trusting=2, seconds=90)
        memory.fall_back("asked")
        time.sleep(20)
        assert memory.moved("asked", began) == [10]
        assert memory.moved("held", began) == [10], "this pool does not need Prometheus"


def test_a_restart_of_keda_removes_no_worker(memory: Watched, busy: Load) -> None:
    """The HPA keeps the replicas while KEDA does not answer, and then follows again.

    It does so in every configuration, so this test does not have a pool as its counter-run.
    """
    keda = ("-n", "keda", "scale", "deployment/keda-operator", "deployment/keda-metrics-apiserver")
    began = time.monotonic()
    memory.entry.where.run(*keda, "--replicas=0")
    time.sleep(20)
    memory.entry.where.run(*keda, "--replicas=1")
    chain.await_keda(memory.entry.where)
    assert memory.moved("held", began) == [10]
    busy.hold(30)
    memory.become(held=15)  # KEDA works again
    busy.hold(20)
    memory.become(held=10)


def test_each_pool_follows_its_own_demand_on_redis(both: tuple[Watched, Watched]) -> None:
    _, shared = both
    shared.patch("careless", STATIC)
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        for name, actions in (("small", 8), ("careless", 12), ("no-pool-has-it", 3)):
            load = stack.enter_context(shared.entry.load(pool=name))
            load.hold(actions)
        shared.become(small=4, careless=6)
        assert shared.moved("large", began) == [1]
        recorded = {"small": 8.0, "large": 0.0, "careless": 12.0, "(unmatched)": 3.0}
        until(f"Prometheus to have {recorded}", lambda: shared.recorded() == recorded, 30)
        shared.prometheus.fires("ActionsUnmatched")
        alerts = {"deployment/nativelink-demand": "DemandLost", "statefulset/nativelink-redis": "RedisDown"}
        for lost, alert in alerts.items():
            with shared.without(lost) as gone:
                shared.prometheus.fires(alert)
                shared.become(careless=2, seconds=90)
                assert shared.moved("small", gone) == [4], lost
                assert shared.moved("large", gone) == [1], lost
            shared.become(small=4, careless=6, seconds=90)
    shared.become(small=1, careless=1)


def test_a_full_redis_is_noticed(both: tuple[Watched, Watched]) -> None:
    _, shared = both
    shared.prometheus.quiet("SchedulerNotMatching", "ActionsUnmatched")
    client = ("-n", "shared", "exec", "nativelink-redis-0", "--", "/opt/redis-stack/bin/redis-cli", "-e")
    each = "for number = 1, 6 do redis.call({}) end"
    fill, empty = each.format("'SET', number, string.rep('x', 10485760)"), each.format("'DEL', number")
    _, limit = shared.entry.where.run(*client, "CONFIG", "GET", "maxmemory").split()
    # A small limit, because a full one would take hundreds of megabytes of this machine.
    shared.entry.where.run(*client, "EVAL", fill, "0")
    shared.entry.where.run(*client, "CONFIG", "SET", "maxmemory", "64mb")
    shared.prometheus.fires("RedisFull")
    shared.entry.where.run(*client, "EVAL", empty, "0")
    shared.entry.where.run(*client, "CONFIG", "SET", "maxmemory", limit)
    shared.prometheus.quiet("SchedulerNotMatching", "ActionsUnmatched")


def test_a_dead_matching_loop_is_noticed(both: tuple[Watched, Watched]) -> None:
    """Without its guard a scheduler on Redis takes actions and never runs one. This test leaves it so."""
    _, shared = both

    def fires() -> bool:
        return "SchedulerLoopDead" in shared.prometheus.firing()

    def matches(pod: str) -> bool:
        return shared.prometheus.series(f'nativelink_scheduler_matching_passes_total{{pod="{pod}"}} > 0') != []

    container = {
        "name": "nativelink",
        "command": ["/shared/nativelink", "/config/scheduler.json5"],
        "env": [{"name": "NATIVELINK_STANDIN_DEAD_STARTS", "value": "100"}],
        "startupProbe": None,
    }
    patch = json.dumps({"spec": {"template": {"spec": {"containers": [container]}}}})
    scheduler = "deployment/nativelink-scheduler"
    shared.entry.where.run("-n", "shared", "patch", scheduler, "--type=strategic", "-p", patch)
    for _ in range(10 if nativelink.SAVED else 1):  # half of the original's starts are dead
        shared.entry.where.rolled_out("shared", scheduler)
        new = shared.entry.only_scheduler()
        with shared.entry.load(pool="small") as load:
            load.hold(1)  # a call that the new scheduler counts
        until("the alert, or a loop that matches", lambda new=new: fires() or matches(new), 90)  # type: ignore[misc]
        if fires():
            return
        shared.entry.where.run("-n", "shared", "rollout", "restart", scheduler)
    raise AssertionError("the alert did not fire")


# A stand-in for a metrics adapter, because prometheus-adapter is not available here.


class Adapter(http.server.BaseHTTPRequestHandler):
    """A server of external metrics from Prometheus, as a metrics adapter is."""

    prometheus = ""

    def do_GET(self) -> None:
        path = urllib.parse.urlsplit(self.path)
        api = {"kind": "ExternalMetricValueList", "apiVersion": "external.metrics.k8s.io/v1beta1", "metadata": {}}
        if not path.path.endswith(f"/{QUEUE}"):
            self._say({"kind": "APIResourceList", "groupVersion": api["apiVersion"], "resources": []})
            return
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        items = [
            {"metricName": QUEUE, "metricLabels": {}, "timestamp": now, "value": each["value"][1]}
            for each in queue_depths(self.prometheus)
        ]
        self._say({**api, "items": items})

    def _say(self, said: Object) -> None:
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
    where = memory.entry.where
    network = node.network(where.home)
    assert network
    Adapter.prometheus = memory.entry.address("nativelink-prometheus")
    server = http.server.ThreadingHTTPServer((network.machine, 0), Adapter)
    pki = where.home / "kwok" / "clusters" / where.name / "pki"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki / "admin.crt", pki / "admin.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_address[1]
    where.run("-n", "keda", "scale", "deployment", "--all", "--replicas=0")
    metadata = {"name": "adapter", "namespace": "default"}
    where.apply(
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": [{"port": 443}]}},
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**metadata, "labels": {"kubernetes.io/service-name": "adapter"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [network.machine], "conditions": {"ready": True}}],
            "ports": [{"port": port, "protocol": "TCP"}],
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": "v1beta1.external.metrics.k8s.io"},
            "spec": {
                "group": "external.metrics.k8s.io",
                "version": "v1beta1",
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
                "insecureSkipTLSVerify": True,
                "caBundle": None,
                "service": {"name": "adapter", "namespace": "default", "port": 443},
            },
        },
    )
    yield
    server.shutdown()


def test_a_plain_hpa_follows_the_demand(memory: Watched, busy: Load, adapter: None) -> None:
    memory.become(plain=10, seconds=90)
    busy.hold(0)
    memory.become(plain=1, seconds=60)

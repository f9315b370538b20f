"""The stand-in for NativeLink reports the metrics that the original reports, through the collector's configuration.

The names, labels and buckets are those that v1.6.6 and v1.3.2 reported to the same collector in a conformance run.
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render

from testbed import build
from testbed.ports import free_ports
from testbed.waiting import until
from testkit.trees import values_of
from tests.testbed.test_standin import SERVICES, V132, WORKER, Farm, Object, Redis, looked_up, put
from tests.testbed.test_standin import redis as redis  # a fixture

SERIES = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")


class Collector:
    """A collector with the rendered configuration, to which a process reports twice a second as one of the senders."""

    def __init__(self, folder: Path, sender: str) -> None:
        self.otlp, self.demand, self.reported, health = free_ports(4)
        files = render.tree(values_of(nativelink_metrics=["scheduler", sender], nativelink_prometheus="bundled"))
        name = "collector-workers" if sender == "worker" else "collector"
        config = yaml.safe_load(files[f"monitoring/{name}.yaml"])
        ports = {"prometheus/demand": self.demand, "prometheus/reported": self.reported}
        for exporter, settings in config["exporters"].items():
            settings["endpoint"] = f"127.0.0.1:{ports[exporter]}"
        config["receivers"][f"otlp/{sender}"]["protocols"]["grpc"]["endpoint"] = f"127.0.0.1:{self.otlp}"
        config["extensions"]["health_check"]["endpoint"] = f"127.0.0.1:{health}"
        self.file = folder / "collector.yaml"
        self.file.write_text(yaml.safe_dump(config))
        self.environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.otlp}",
            "OTEL_METRIC_EXPORT_INTERVAL": "500",
            "OTEL_RESOURCE_ATTRIBUTES": "service.name=another,k8s.pod.name=here",
        }

    def series(self, port: int) -> dict[str, float]:
        """Return the values of the series at a port by name and labels, without those that are the same for all."""
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            lines = [SERIES.fullmatch(line) for line in answer.read().decode().splitlines() if line[0] != "#"]
        found = {}
        for name, labels, value in (line.groups() for line in lines if line):
            own = [each for each in (labels or "").split(",") if not each.startswith(("component=", "pod="))]
            found[" ".join([name, *own]).strip()] = float(value)
        return found

    def reports(self) -> dict[str, float]:
        """Return the series that are not the demand, without the namespace that the collector puts before each name."""
        return {name.removeprefix("nativelink_"): value for name, value in self.series(self.reported).items()}


@pytest.fixture
def sender() -> str:
    return "scheduler"


@pytest.fixture
def collector(tmp_path: Path, sender: str) -> Iterator[Collector]:
    made = Collector(tmp_path, sender)
    program = build.program("otelcol")
    with (tmp_path / "collector.log").open("wb") as log:
        process = subprocess.Popen([program, f"--config={made.file}"], stdout=log, stderr=log)
    try:
        until("the collector", lambda: made.series(made.reported) == {}, 30, (tmp_path / "collector.log").read_text)
        yield made
    finally:
        process.kill()
        process.wait()


def counted(config: Object) -> None:
    """Count reads and writes of CAS and action cache, and the lookups of the scheduler, as our configurations do."""
    verify: Object = {"verify": {"verify_hash": True, "backend": {"ref_store": {"name": "CAS"}}}}
    backends: Object = {"cas": verify, "ac": {"ref_store": {"name": "AC"}}, "ac_lookup": {"ref_store": {"name": "AC"}}}
    for cache_type, backend in backends.items():
        put("stores.+", {"name": cache_type, "cache_metrics": {"cache_type": cache_type, "backend": backend}})(config)
    looked_up(config)
    put("schedulers.0.cache_lookup.ac_store", "ac_lookup")(config)
    put(f"{SERVICES}.cas.0.cas_store", "cas")(config)
    put(f"{SERVICES}.ac.0.ac_store", "ac")(config)


CALLS = "build.bazel.remote.execution.v2"
READ, WRITE = (
    'cache_operation_name="read" cache_operation_result=',
    'cache_operation_name="write" cache_operation_result=',
)
# Series as v1.6.6 has them, with the values that the test's calls make; those without a value depend on the time.
SEEN: dict[str, float | None] = {
    f'cache_operations_total {READ}"hit" cache_type="ac_lookup"': 1,
    f'cache_operations_total {READ}"miss" cache_type="ac_lookup"': 3,
    f'cache_operations_total {WRITE}"error" cache_type="cas"': 1,
    f'cache_operations_total {WRITE}"success" cache_type="cas"': 8,
    f'cache_io_bytes_total {READ}"hit" cache_type="ac_lookup"': None,
    f'cache_io_bytes_total {WRITE}"success" cache_type="cas"': None,
    f'cache_item_size_bytes_count {WRITE}"success" cache_type="cas"': 8,
    f'cache_operation_duration_milliseconds_count {READ}"hit" cache_type="ac_lookup"': 1,
    f'cache_operation_duration_milliseconds_count {READ}"miss" cache_type="ac_lookup"': 3,
    f'cache_operation_duration_milliseconds_count {WRITE}"error" cache_type="cas"': 1,
    f'cache_operation_duration_milliseconds_count {WRITE}"success" cache_type="cas"': 8,
    'execution_completed_count_total execution_result="failure" execution_stage="completed"': 1,
    'execution_completed_count_total execution_result="success" execution_stage="completed"': 2,
    "execution_output_size_bytes_count": 3,
    "execution_peak_memory_bytes_count": 3,
    "execution_queue_time_seconds_count": 3,
    'execution_stage_duration_seconds_count execution_stage="execution"': 3,
    'execution_stage_duration_seconds_count execution_stage="input_fetch"': 3,
    'execution_stage_duration_seconds_count execution_stage="output_upload"': 3,
    "execution_stage_transitions_total": 6,  # the queue in memory counts them once more
    'execution_stage_transitions_total execution_stage="completed"': 3,
    'execution_stage_transitions_total execution_stage="executing"': 3,
    "execution_total_duration_seconds_count": 3,
    'health_checks_total health_namespace="/nativelink/stores/AC/MemoryStore" health_status="ok"': 1,
    'health_checks_total health_namespace="/nativelink/stores/CAS/MemoryStore" health_status="ok"': 1,
    'rpc_server_duration_seconds_count rpc_grpc_status_code="0" rpc_method="BatchUpdateBlobs"'
    f' rpc_service="{CALLS}.ContentAddressableStorage"': 9,
    'rpc_server_duration_seconds_count rpc_grpc_status_code="0" rpc_method="ConnectWorker"'
    ' rpc_service="com.github.trace_machina.nativelink.remote_execution.WorkerApi"': 1,
    'rpc_server_duration_seconds_count rpc_grpc_status_code="0" rpc_method="Execute"'
    f' rpc_service="{CALLS}.Execution"': 4,
    'rpc_server_duration_seconds_count rpc_grpc_status_code="5" rpc_method="GetActionResult"'
    f' rpc_service="{CALLS}.ActionCache"': 1,
    "scheduler_matching_duration_seconds_count": None,
    'scheduler_matching_passes_total scheduler_match_result="ok"': None,
    'store_tier_io_bytes_total store_direction="read" store_tier="fast"': None,
    'store_tier_io_bytes_total store_direction="read" store_tier="slow"': None,
    'store_tier_operations_total store_result="hit" store_tier="fast"': 1,  # of the command that two actions have
    'store_tier_operations_total store_result="hit" store_tier="slow"': 5,
    'store_tier_operations_total store_result="miss" store_tier="fast"': 5,
    "worker_connected_count": 1,
    "worker_connections_total": 1,
    "worker_keepalives_total": None,
}
BUCKETS = {
    "cache_item_size_bytes": "0 5 10 25 50 75 100 250 500 750 1000 2500 5000 7500 10000",
    "cache_operation_duration_milliseconds": "0.001 0.005 0.01 0.05 0.1 0.2 0.5 1 2 5 10 20 50 100 200"
    " 500 1000 2000 5000",
    "execution_output_size_bytes": "1024 10240 102400 1.048576e+06 1.048576e+07 1.048576e+08 1.073741824e+09"
    " 1.073741824e+10",
    "execution_peak_memory_bytes": "1.048576e+06 1.6777216e+07 6.7108864e+07 2.68435456e+08 1.073741824e+09"
    " 4.294967296e+09 1.7179869184e+10 6.8719476736e+10",
    "execution_queue_time_seconds": "0.001 0.01 0.1 0.5 1 2 5 10 30 60 300 600",
    "execution_stage_duration_seconds": "0.001 0.01 0.1 0.5 1 2 5 10 30 60 120 300 600 1800 3600",
    "execution_total_duration_seconds": "0.01 0.1 0.5 1 5 10 30 60 300 600 1800 3600 7200",
    "rpc_server_duration_seconds": "0.001 0.005 0.01 0.025 0.05 0.1 0.25 0.5 1 2.5 5 10 30 60 300",
    "scheduler_matching_duration_seconds": "0.0001 0.001 0.005 0.01 0.025 0.05 0.1 0.25 0.5 1 2.5 5 10",
}


def test_the_series_and_their_buckets_are_those_of_the_original(tmp_path: Path, collector: Collector) -> None:
    with Farm(tmp_path, counted, **collector.environment) as farm:
        for command, properties in (
            ("/bin/true", {}),
            ("/bin/true", {}),
            ("/bin/true", {"note": "1"}),
            ("/bin/false", {}),
        ):
            assert b"ExecuteResponse" in farm.execute([command], **properties)
        farm.upload(b"evil bytes", b"good bytes")
        farm.call("ActionCache", "GetActionResult", b"")
        with urllib.request.urlopen(f"http://127.0.0.1:{farm.internal}/status", timeout=30) as answer:
            assert answer.status == 200

        def found() -> dict[str, float]:
            # An action may take less than the least CPU time that is reported.
            uncertain = re.compile(r"\w+_(bucket|sum)\b|execution_cpu_time_")
            return {name: value for name, value in collector.reports().items() if not uncertain.match(name)}

        until("all series", lambda: found().keys() >= SEEN.keys(), 20, lambda: f": {SEEN.keys() - found().keys()}")
        until("the last call", lambda: 'health_status="ok"' in str(found()), 20)
        assert {name: None if SEEN.get(name, 0) is None else value for name, value in found().items()} == SEEN
        buckets: dict[str, list[str]] = {}
        for name in collector.reports():
            if bucket := re.fullmatch(r'(\w+)_bucket.* le="(.*)"', name):
                limits = buckets.setdefault(bucket[1], [])
                limits += [] if bucket[2] in limits else [bucket[2]]
        buckets.pop("execution_cpu_time_seconds", None)
        assert {name: " ".join(limits) for name, limits in buckets.items()} == {
            name: f"{limits} +Inf" for name, limits in BUCKETS.items()
        }


@pytest.mark.parametrize("sender", ["worker"])
def test_at_the_port_of_the_workers_only_their_series_get_through(tmp_path: Path, collector: Collector) -> None:
    """The test above is the counter-run: the scheduler's port takes all series of the same farm."""
    with Farm(tmp_path, counted, **collector.environment) as farm:
        assert b"ExecuteResponse" in farm.execute(["/bin/true"])
        until("the series", lambda: collector.reports() != {}, 20)
        time.sleep(2)  # four more exports, with all that the scheduler and the CAS of the process report
        assert {*collector.reports()} == {
            'store_tier_io_bytes_total store_direction="read" store_tier="slow"',
            'store_tier_operations_total store_result="hit" store_tier="slow"',
            'store_tier_operations_total store_result="miss" store_tier="fast"',
        }


def test_workers_that_refuse_or_leave_are_counted(tmp_path: Path, collector: Collector) -> None:
    """A worker that refuses an action while it runs another one is paused. The original calls each lost one evicted."""
    refuses, script = tmp_path / "refuses", tmp_path / "precondition.sh"
    script.write_text(f"#!/bin/sh\n[ ! -e {refuses} ]\n")
    script.chmod(0o755)
    precondition = put(f"{WORKER}.experimental_precondition_script", str(script))
    with Farm(tmp_path, precondition, **collector.environment) as farm:
        second = farm.start_worker("second", workers=2, memory_kb="2")
        farm.load("--actions", "1", "--seconds", "60-60", "--platform", "memory_kb=1")
        until("the action to run", lambda: farm.told("Executing command", "second") != [], 20, farm.said)
        refuses.touch()
        farm.load("--actions", "1", "--seconds", "0-0", "--platform", "memory_kb=1", "--salt", "refused")
        paused = 'worker_state_count worker_state="paused"'
        until("the worker to be paused", lambda: collector.reports().get(paused) == 1, 20, farm.said)
        second.send_signal(signal.SIGKILL)
        gone = 'worker_disconnections_total worker_disconnect_reason="evicted"'
        until("the worker to be gone", lambda: collector.reports().get(gone) == 1, 20, farm.said)
        found = collector.reports()
        assert (found["worker_connected_count"], found["worker_connections_total"], found[paused]) == (1, 2, 0)
        # The first action lost its worker, and the second one was refused at least once.
        assert found["execution_retry_count_total"] >= 2
        assert found['execution_stage_transitions_total execution_stage="queued"'] >= 2


def test_v132_has_fewer_metrics(tmp_path: Path, collector: Collector) -> None:
    with Farm(tmp_path, counted, schema=V132, **collector.environment) as farm:
        assert b"ExecuteResponse" in farm.execute(["/bin/true"])
        completed = 'execution_completed_count_total execution_result="success" execution_stage="completed"'
        until("the action to be reported", lambda: collector.reports().get(completed) == 1, 20, farm.said)
        names = {re.sub(r"(_total|_bucket|_sum|_count)?( .*)?$", "", name) for name in collector.reports()}
        cache = {
            f"cache_{name}" for name in ("io_bytes", "item_size_bytes", "operation_duration_milliseconds", "operations")
        }
        assert names == cache | {"execution_completed_count", "execution_stage_transitions"}


def test_on_redis_no_action_counts_as_queued(tmp_path: Path, collector: Collector, redis: Redis) -> None:
    """The original counts the actions by stage only in memory, and completed ones only once on Redis."""
    with Farm(tmp_path, redis.backend(), **collector.environment) as farm:
        assert farm.runs()["outcome"] == "ok"
        farm.load("--actions", "1", "--hold", "60", "--platform", "memory_kb=1")
        until("the action to be queued", lambda: farm.state()["queued"] == 1, 20, farm.said)
        passes = 'scheduler_matching_passes_total scheduler_match_result="ok"'
        before = collector.reports().get(passes, 0)
        until("later reports", lambda: collector.reports().get(passes, 0) >= before + 3, 20, farm.said)
        stages = {name: value for name, value in collector.series(collector.demand).items() if "active" in name}
        assert set(stages.values()) == {0}, stages
        transitions = {name: value for name, value in collector.reports().items() if "transitions" in name}
        name = "execution_stage_transitions_total execution_stage="
        assert transitions == {f'{name}"executing"': 1, f'{name}"completed"': 1}

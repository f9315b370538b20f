"""The stand-in for NativeLink reports what the original has reported to the same collector."""

from __future__ import annotations

import re
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
from tests.testbed.test_standin import SERVICES, Farm, Object, looked_up, put

# A recording of the original in a conformance run.
RECORDED = Path(__file__).parents[1] / "monitoring/scrapes/reported.txt"
WHO = {"component", "pod", "pool"}  # the labels of a process, which come from its environment
Series = tuple[str, frozenset[str]]


def series(text: str) -> set[Series]:
    """Return the series of a scrape: the name of each, and the names of its labels."""
    lines = re.findall(r"^(\w+)(?:\{(.*)\})? ", text, re.MULTILINE)
    return {(name, frozenset(re.findall(r'(\w+)="', labels)) - WHO) for name, labels in lines}


class Collector:
    """A collector with the rendered configuration, to which a process reports twice a second as one of the senders."""

    def __init__(self, folder: Path, sender: str) -> None:
        self.otlp, demand, self.reported, health = free_ports(4)
        files = render.tree(values_of(nativelink_metrics=["scheduler", sender], nativelink_prometheus="bundled"))
        name = "collector-workers" if sender == "worker" else "collector"
        config = yaml.safe_load(files[f"monitoring/{name}.yaml"])
        ports = {"prometheus/demand": demand, "prometheus/reported": self.reported}
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

    def series(self) -> set[Series]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.reported}/metrics", timeout=10) as answer:
            return series(answer.read().decode())


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
        until("the collector", lambda: made.series() == set(), 30, (tmp_path / "collector.log").read_text)
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


def names(found: set[Series]) -> set[str]:
    return {name for name, _ in found}


def test_all_series_are_of_the_original(tmp_path: Path, collector: Collector) -> None:
    with Farm(tmp_path, counted, **collector.environment) as farm:
        for command in ('["/bin/true"]', '["/bin/false"]', '["/bin/true"]'):
            farm.runs(f"--command={command}", "--salt=same")
        with urllib.request.urlopen(f"http://127.0.0.1:{farm.internal}/status", timeout=30) as answer:
            assert answer.status == 200
        wanted = {"nativelink_health_checks_total", "nativelink_execution_completed_count_total"}
        until("the last series", lambda: wanted <= names(collector.series()), 20, farm.said)
        recorded = series(RECORDED.read_text())
        assert collector.series() - recorded == set()


@pytest.mark.parametrize("sender", ["worker"])
def test_at_the_port_of_the_workers_only_their_series_get_through(tmp_path: Path, collector: Collector) -> None:
    """The test above is the counter-run: the scheduler's port takes all series of the same farm."""
    with Farm(tmp_path, counted, **collector.environment) as farm:
        assert farm.runs()["outcome"] == "ok"
        until("the series", lambda: collector.series() != set(), 20)
        time.sleep(2)  # four more exports, with all that the scheduler and the CAS of the process report
        assert names(collector.series()) == {
            "nativelink_store_tier_io_bytes_total",
            "nativelink_store_tier_operations_total",
        }

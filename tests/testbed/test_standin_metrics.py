"""The stand-in for NativeLink reports what the original has reported to the same collector."""

import re
import time
import urllib.request
from pathlib import Path

from testbed.waiting import until
from testkit.collector import Source, source
from tests.testbed.test_standin import SERVICES, Farm, Object, looked_up, put

# A recording of the original in a conformance run.
RECORDED = Path(__file__).parents[1] / "monitoring/scrapes/reported.txt"
WHO = {"component", "pod", "pool"}  # the labels of a process, which come from its environment
Series = tuple[str, frozenset[str]]


def series(text: str) -> set[Series]:
    """Return the series of a scrape: the name of each, and the names of its labels."""
    lines = re.findall(r"^(\w+)(?:\{(.*)\})? ", text, re.MULTILINE)
    return {(name, frozenset(re.findall(r'(\w+)="', labels)) - WHO) for name, labels in lines}


def reported(by: Source) -> set[Series]:
    with urllib.request.urlopen(f"http://{by.reported}/metrics", timeout=10) as answer:
        return series(answer.read().decode())


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


def test_all_series_are_of_the_original(tmp_path: Path) -> None:
    resource = {"OTEL_RESOURCE_ATTRIBUTES": "service.name=another,k8s.pod.name=here"}
    with source(tmp_path) as collector, Farm(tmp_path, counted, **collector.environment, **resource) as farm:
        for command in ('["/bin/true"]', '["/bin/false"]', '["/bin/true"]'):
            farm.runs(f"--command={command}", "--salt=same")
        with urllib.request.urlopen(f"http://127.0.0.1:{farm.internal}/status", timeout=30) as answer:
            assert answer.status == 200
        wanted = {"nativelink_health_checks_total", "nativelink_execution_completed_count_total"}
        until("the last series", lambda: wanted <= names(reported(collector)), 20, farm.said)
        recorded = series(RECORDED.read_text())
        assert reported(collector) - recorded == set()


def test_at_the_port_of_the_workers_only_their_series_get_through(tmp_path: Path) -> None:
    """The test above is the counter-run: the scheduler's port takes all series of the same farm."""
    with source(tmp_path, sender="worker") as collector, Farm(tmp_path, counted, **collector.environment) as farm:
        assert farm.runs()["outcome"] == "ok"
        until("the series", lambda: reported(collector) != set(), 20)
        time.sleep(4)  # more exports, with all that the scheduler and the CAS of the process report
        assert names(reported(collector)) == {
            "nativelink_store_tier_io_bytes_total",
            "nativelink_store_tier_operations_total",
        }

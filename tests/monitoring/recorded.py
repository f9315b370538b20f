"""What the components of a farm have served to Prometheus, and whether queries find anything in it.

`scrapes/` has a file for each component. Its first lines say the version, how it was recorded and what was changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.waiting import until
from testkit.prometheus import Local, local
from testkit.servers import served
from tests.monitoring.entries import files

SCRAPES = Path(__file__).with_name("scrapes")
# The job and the target's labels of each file. Its own labels win, as in the rendered scrape configuration.
TARGETS: dict[str, dict[str, str]] = {
    "reported": {"job": "nativelink-reported", "namespace": "nativelink"},
    "demand-memory": {"job": "nativelink-collector", "namespace": "nativelink"},
    "demand-redis": {"job": "nativelink-demand", "namespace": "nativelink"},
    "kube-state-metrics": {"job": "nativelink-kube-state-metrics", "namespace": "kube-system", "pod": "states-0"},
    "kubelet": {"job": "nativelink-kubelet", "node": "node-0"},
    "cadvisor": {"job": "nativelink-kubelet", "node": "node-0"},
    "keda": {"job": "nativelink-keda", "namespace": "keda", "pod": "keda-operator-0"},
    "edge": {
        "job": "nativelink-edge",
        "namespace": "envoy-gateway-system",
        "pod": "envoy-nativelink-nativelink-3ac7e5d9-6d4b-x",
    },
    "flux": {"job": "nativelink-gitops", "namespace": "flux-system", "pod": "kustomize-controller-0"},
    "argocd": {"job": "nativelink-gitops", "namespace": "argocd", "pod": "argocd-application-controller-0"},
}


@dataclass(frozen=True)
class Recorded(Local):
    """A Prometheus that has scraped the recordings once a second for some seconds."""

    def selectors(self, query: str) -> list[str]:
        """Return the selectors of a PromQL query, without ranges and offsets, as Prometheus itself parses it."""
        return sorted(set(_selectors(self.ask("parse_query", query=query))))

    def missing(self, query: str) -> list[str]:
        """Return the selectors of a query that match no recorded series."""
        return [each for each in self.selectors(query) if not self.ask("series", **{"match[]": each})]


def _selectors(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        for each in node:
            yield from _selectors(each)
    elif isinstance(node, dict):
        if node.get("type") in ("vectorSelector", "matrixSelector"):
            matchers = (f"{each['name']}{each['type']}{json.dumps(each['value'])}" for each in node["matchers"])
            yield f"{{{','.join(matchers)}}}"
        else:
            yield from _selectors(list(node.values()))


@contextmanager
def recorded(folder: Path) -> Iterator[Recorded]:
    """Run a Prometheus on the recordings, with the recording rules of a cluster on Redis, in a folder of its own."""
    times = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (folder / "rules.yaml").write_text(files("redis")["monitoring/rules.yaml"])
    with served(SCRAPES) as server:
        jobs = [
            {
                "job_name": name,
                "metrics_path": f"/{name}.txt",
                "honor_labels": True,
                "static_configs": [{"targets": [server], "labels": {"cluster": "test", **labels}}],
            }
            for name, labels in TARGETS.items()
        ]
        settings = {"global": times, "rule_files": ["rules.yaml"], "scrape_configs": jobs}
        with local("prometheus", folder, settings) as address:
            found = Recorded(address)

            def scraped() -> bool:
                up = {each["metric"]["job"] for each in found.series("up")}
                counted = found.series('nativelink_scheduler_queue_depth{pool="default"}')
                return len(up) == len({labels["job"] for labels in TARGETS.values()}) and bool(counted)

            until("Prometheus to have scraped all recordings", scraped, 60, (folder / "prometheus.log").read_text)
            yield found

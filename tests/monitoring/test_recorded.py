"""All names and labels that alerts, dashboards and the page about cost select exist in what real components served.

`scrapes/` has a file for each component. Its first lines say the version, how it was recorded and what was changed.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils.specs import ROOT

import dashboards
from testbed.waiting import until
from testkit.prometheus import Alerts, local
from testkit.servers import served
from tests.monitoring.entries import VARIABLES, files

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
    "edge": {"job": "nativelink-edge", "namespace": "envoy-gateway-system", "pod": "envoy-nativelink-nativelink-0"},
    "flux": {"job": "nativelink-gitops", "namespace": "flux-system", "pod": "kustomize-controller-0"},
    "argocd": {"job": "nativelink-gitops", "namespace": "argocd", "pod": "argocd-application-controller-0"},
}
# The values of Grafana's variables. Scrapes are 15 s apart, and the range is an hour.
VALUES = {"cluster": "test", "namespace": "nativelink", "workers_namespace": "nativelink-workers", "pool": ".+"}
VALUES |= {"price": "0.4", "__rate_interval": "60s", "__range": "3600s"}
# The recording has none of these: each begins with an event.
EVENTS = {
    "ALERTS": "an alert fires",
    "argocd_app_sync_total": "Argo CD applies a tree",
    "nativelink_execution_completed_count_total": "an action fails",
    "nativelink_worker_state_count": "a worker refuses an action",
}


def missing(prometheus: Alerts, query: str) -> list[str]:
    """Return the selectors of a query, as Prometheus itself parses it, that match no recorded series."""
    found = sorted(set(_selectors(prometheus.fetch("parse_query", query=query))))
    return [each for each in found if not prometheus.fetch("series", **{"match[]": each})]


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


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alerts]:
    """Yield a Prometheus on the recordings, with the recording rules of a cluster on Redis."""
    folder = tmp_path_factory.mktemp("recorded")
    times = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (folder / "rules.yaml").write_text(files("redis")["monitoring/rules.yaml"])
    with served(SCRAPES) as server:
        targets = {name: {"targets": [server], "labels": {"cluster": "test", **each}} for name, each in TARGETS.items()}
        jobs = [
            {"job_name": name, "metrics_path": f"/{name}.txt", "honor_labels": True, "static_configs": [each]}
            for name, each in targets.items()
        ]
        settings = {"global": times, "rule_files": ["rules.yaml"], "scrape_configs": jobs}
        with local("prometheus", folder, settings) as address:
            found = Alerts(address)

            def scraped() -> bool:
                up = sum(each.count("up") for each in found.targets().values())
                return up == len(TARGETS) and bool(found.series('nativelink_scheduler_queue_depth{pool="default"}'))

            until("Prometheus to have scraped all recordings", scraped, 60, (folder / "prometheus.log").read_text)
            yield found


@pytest.mark.parametrize("backend", VARIABLES)
def test_the_alerts_select_recorded_series(recording: Alerts, backend: str) -> None:
    groups = yaml.safe_load(files(backend)["monitoring/alert-rules.yaml"])["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["alert"]: lost for rule in rules if (lost := missing(recording, rule["expr"]))} == {}


def lost_by(recording: Alerts, query: str) -> list[str]:
    """Return the missing selectors of a query of a dashboard. A $1 of label_replace is not a variable."""
    return missing(recording, re.sub(r"\$\{?([a-z_]+)\}?", lambda found: VALUES[found[1]], query))


def test_the_dashboards_select_recorded_series(recording: Alerts) -> None:
    panels = (panel for model in dashboards.models().values() for panel in dashboards.panels(model))
    queries = [(panel["title"], target["expr"]) for panel in panels for target in panel["targets"]]
    lost = {(title, each) for title, query in queries for each in lost_by(recording, query)}
    names = {found[1] for _, each in lost if (found := re.search(r'__name__="(\w+)"', each))}
    assert names <= EVENTS.keys(), lost
    assert [each for _, each in lost if "completed_count" in each and "execution_result" not in each] == []


def test_the_variables_of_dashboards_select_recorded_series(recording: Alerts) -> None:
    for variable in (each for model in dashboards.models().values() for each in model["templating"]["list"]):
        if variable["type"] == "query":
            (series,) = re.findall(r"^label_values\((.+), \w+\)$", variable["query"]["query"])
            assert lost_by(recording, series) == [], variable["name"]


def test_the_queries_of_the_page_about_cost_select_recorded_series(recording: Alerts) -> None:
    queries = re.findall(r"```promql\n(.+?)\n```", (ROOT / "docs/cost.md").read_text(), re.DOTALL)
    assert queries
    assert [each for query in queries for each in missing(recording, query)] == []


def test_wrong_selectors_are_found(recording: Alerts) -> None:
    """The counter-run: a name that does not exist and a label that does not match are missing, others are not."""
    query = 'sum(rate(nativelink_queue_depth[5m])) > 0 and on () redis_up{namespace="other"} == redis_up offset 5m'
    assert missing(recording, query) == [
        '{__name__="nativelink_queue_depth"}',
        '{namespace="other",__name__="redis_up"}',
    ]


def test_each_recording_is_a_target() -> None:
    assert {path.stem for path in SCRAPES.glob("*.txt")} == TARGETS.keys()

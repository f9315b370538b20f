"""All names and labels that alerts, dashboards and the page about cost select exist in what real components served."""

from __future__ import annotations

import re

import pytest
import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils.specs import ROOT

import dashboards
from tests.monitoring.entries import VARIABLES, files
from tests.monitoring.recorded import SCRAPES, TARGETS, Recorded

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


@pytest.mark.parametrize("backend", VARIABLES)
def test_the_alerts_select_recorded_series(recording: Recorded, backend: str) -> None:
    groups = yaml.safe_load(files(backend)["monitoring/alert-rules.yaml"])["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["alert"]: lost for rule in rules if (lost := recording.missing(rule["expr"]))} == {}


def lost_by(recording: Recorded, query: str) -> list[str]:
    """Return the missing selectors of a query of a dashboard. A $1 of label_replace is no variable."""
    return recording.missing(re.sub(r"\$\{?([a-z_]+)\}?", lambda found: VALUES[found[1]], query))


def test_the_dashboards_select_recorded_series(recording: Recorded) -> None:
    panels = (panel for model in dashboards.models().values() for panel in dashboards.panels(model))
    queries = [(panel["title"], target["expr"]) for panel in panels for target in panel["targets"]]
    lost = {(title, each) for title, query in queries for each in lost_by(recording, query)}
    missing = {found[1] for _, each in lost if (found := re.search(r'__name__="(\w+)"', each))}
    assert missing <= EVENTS.keys(), lost
    assert [each for _, each in lost if "completed_count" in each and "execution_result" not in each] == []


def test_the_variables_of_dashboards_select_recorded_series(recording: Recorded) -> None:
    for variable in (each for model in dashboards.models().values() for each in model["templating"]["list"]):
        if variable["type"] == "query":
            (series,) = re.findall(r"^label_values\((.+), \w+\)$", variable["query"]["query"])
            assert lost_by(recording, series) == [], variable["name"]


def test_the_queries_of_the_page_about_cost_select_recorded_series(recording: Recorded) -> None:
    queries = re.findall(r"```promql\n(.+?)\n```", (ROOT / "docs/cost.md").read_text(), re.DOTALL)
    assert queries
    assert [each for query in queries for each in recording.missing(query)] == []


def test_wrong_selectors_are_found(recording: Recorded) -> None:
    """The counter-run: a name that does not exist and a label that does not match are missing, others are not."""
    query = 'sum(rate(nativelink_queue_depth[5m])) > 0 and on () redis_up{namespace="other"} == redis_up offset 5m'
    assert recording.missing(query) == [
        '{__name__="nativelink_queue_depth"}',
        '{namespace="other",__name__="redis_up"}',
    ]


def test_each_recording_is_a_target() -> None:
    assert {path.stem for path in SCRAPES.glob("*.txt")} == TARGETS.keys()

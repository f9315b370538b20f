"""The queries of the dashboards select what real components have served."""

from __future__ import annotations

import re

from ansible_collections.nativelink.gitops.plugins.plugin_utils.specs import ROOT

import dashboards
from tests.monitoring.recorded import Recorded

VALUES = dashboards.variables("test", "nativelink", "nativelink-workers", 60)
# The recording has none of these: each begins with an event.
EVENTS = {
    "ALERTS": "an alert fires",
    "argocd_app_sync_total": "Argo CD applies a tree",
    "nativelink_execution_completed_count_total": "an action fails",
    "nativelink_worker_state_count": "a worker refuses an action",
}


def test_the_dashboards_select_recorded_series(recording: Recorded) -> None:
    queries = dashboards.queries(VALUES)
    assert len(queries) > 100
    lost = {(query.dashboard, query.panel, each) for query in queries for each in recording.missing(query.expr)}
    missing = {found[1] for _, _, each in lost if (found := re.search(r'__name__="(\w+)"', each))}
    assert missing <= EVENTS.keys(), lost
    assert [each for _, _, each in lost if "completed_count" in each and "execution_result" not in each] == []


def test_a_name_or_a_label_that_does_not_exist_is_found(recording: Recorded) -> None:
    """The counter-run."""
    (query,) = {each.expr for each in dashboards.queries(VALUES) if each.panel == "Retries of actions"}
    assert recording.missing(query.replace("retry_count_total", "retries_total")) != []
    assert recording.missing(query.replace('cluster="test"', 'cluster="other"')) != []
    assert recording.missing(query) == []


def test_the_queries_of_the_page_about_cost_select_recorded_series(recording: Recorded) -> None:
    queries = re.findall(r"```promql\n(.+?)\n```", (ROOT / "docs/cost.md").read_text(), re.DOTALL)
    assert len(queries) == 3
    assert [each for query in queries for each in recording.missing(query)] == []

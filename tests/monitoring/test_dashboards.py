"""Grafana's dashboards: what all panels have, and that Prometheus takes their queries."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations
from urllib.error import HTTPError

import pytest

import dashboards
from testkit.prometheus import local
from tests.monitoring.recorded import Recorded

VALUES = dashboards.variables("test", "nativelink", "nativelink-workers", 60)


MODELS = dashboards.models()
each_dashboard = pytest.mark.parametrize("name", dashboards.NAMES)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    """Start a Prometheus without any target."""
    with local("prometheus", tmp_path_factory.mktemp("prometheus"), {}) as address:
        yield Recorded(address)


@each_dashboard
def test_each_panel_says_what_it_shows_and_what_to_do(name: str) -> None:
    panels = list(dashboards.panels(MODELS[name]))
    for panel in panels:
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert len(panel["description"]) > 30, panel["title"]
        assert panel["targets"], panel["title"]
    assert len(panels) == len({panel["title"] for panel in panels})


def test_a_panel_links_to_each_runbook_that_its_description_names() -> None:
    linked = set()
    for model in MODELS.values():
        for panel in dashboards.panels(model):
            named = list(dict.fromkeys(re.findall(r"NativeLink[A-Z]\w+", panel["description"])))
            assert [link["url"] for link in panel.get("links", ())] == [f"${{runbooks}}/{name}.md" for name in named]
            linked.update(named)
    assert "NativeLinkCASPodDown" in linked
    assert linked <= {path.stem for path in (dashboards.ROOT / "docs/alerts").iterdir()}


@each_dashboard
def test_a_dashboard_keeps_its_address_and_has_nothing_that_changes(name: str) -> None:
    model = MODELS[name]
    assert model["uid"] == f"nativelink-{name}"
    assert model.keys() & {"id", "version", "revision"} == set()
    assert [panel["id"] for panel in model["panels"]] == list(range(1, len(model["panels"]) + 1))
    (link,) = model["links"]
    assert (link["tags"], link["includeVars"], link["keepTime"]) == (model["tags"], True, True), "the link finds it so"


@each_dashboard
def test_no_panel_covers_another_one_or_leaves_the_grid(name: str) -> None:
    places = [panel["gridPos"] for panel in MODELS[name]["panels"]]
    for one, other in combinations(places, 2):
        apart = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart or above, (one, other)
    assert max(place["x"] + place["w"] for place in places) == 24


@each_dashboard
def test_a_dashboard_has_the_variables_that_its_queries_use(name: str) -> None:
    variables = MODELS[name]["templating"]["list"]
    queries = [target["expr"] for panel in dashboards.panels(MODELS[name]) for target in panel["targets"]]
    asked = [each["query"]["query"] for each in variables if each["type"] == "query"]
    used = set(re.findall(r"\$([a-z_]+)", " ".join([*queries, *asked]))) - {"__rate_interval", "__range"}
    # All panels use the first one, and links the last one.
    assert used == {each["name"] for each in variables} - {"datasource", "runbooks"}


@each_dashboard
def test_prometheus_takes_each_query(server: Recorded, name: str) -> None:
    asked = [query for query in dashboards.queries(VALUES) if query.dashboard == name]
    assert len(asked) >= len(list(dashboards.panels(MODELS[name])))
    for query in asked:
        assert "$" not in query.expr.replace('"$1"', "")
        server.ask("query", query=query.expr)
    for variable in MODELS[name]["templating"]["list"]:
        if variable["type"] == "query":
            series = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert series
            server.ask("query", query=dashboards.substituted(series[1], VALUES))


def test_prometheus_refuses_a_wrong_query(server: Recorded) -> None:
    """The counter-run."""
    with pytest.raises(HTTPError) as refused:
        server.ask("query", query="sum(x")
    assert b"unclosed left parenthesis" in refused.value.read()

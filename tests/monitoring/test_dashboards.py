"""Grafana's dashboards: what all panels have. test_recorded.py has their queries."""

import re
from itertools import combinations

import pytest

import dashboards

MODELS = dashboards.models()
each_dashboard = pytest.mark.parametrize("name", dashboards.NAMES)


@each_dashboard
def test_each_panel_says_what_it_shows_and_what_to_do(name: str) -> None:
    panels = list(dashboards.panels(MODELS[name]))
    assert [panel["title"] for panel in panels if len(panel["description"]) <= 30 or not panel["targets"]] == []
    assert len(panels) == len({panel["title"] for panel in panels})


def test_a_panel_links_to_runbooks_that_exist() -> None:
    links = [link for model in MODELS.values() for panel in dashboards.panels(model) for link in panel["links"]]
    names = {link["url"].removeprefix("${runbooks}/") for link in links}
    assert "NativeLinkCASPodDown.md" in names
    assert names <= {path.name for path in (dashboards.ROOT / "docs/alerts").iterdir()}


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

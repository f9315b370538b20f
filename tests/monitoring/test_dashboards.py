"""Grafana's dashboards: what all panels have, and that Prometheus takes their queries."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations
from typing import Any
from urllib.error import HTTPError

import pytest

import dashboards
from testkit.prometheus import local
from tests.monitoring.recorded import Recorded

NAMES = dashboards.NAMES
VALUES = dashboards.variables("test", "nativelink", "nativelink-workers", 60)


@pytest.fixture(scope="module")
def models() -> dict[str, dict[str, Any]]:
    return dashboards.models()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    """Start a Prometheus without any target."""
    with local("prometheus", tmp_path_factory.mktemp("prometheus"), {}) as address:
        yield Recorded(address)


def test_the_files_are_what_the_code_makes() -> None:
    """`make generate` writes them."""
    wanted = dashboards.files()
    assert {path: path.read_text() for path in dashboards.FOLDER.iterdir()} == wanted
    assert [path.name for path in wanted] == [f"{name}.json" for name in NAMES]
    assert dashboards.files() == wanted, "the code makes the same text every time"


@pytest.mark.parametrize("name", NAMES)
def test_each_panel_says_what_it_shows_and_what_to_do(models: dict[str, dict[str, Any]], name: str) -> None:
    titles = []
    for panel in dashboards.panels(models[name]):
        titles.append(panel["title"])
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert len(panel["description"]) > 30, panel["title"]
        assert panel["targets"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert len(titles) == len(set(titles))


def test_a_panel_links_to_each_runbook_that_its_description_names(models: dict[str, dict[str, Any]]) -> None:
    linked = set()
    for model in models.values():
        for panel in dashboards.panels(model):
            named = list(dict.fromkeys(re.findall(r"NativeLink[A-Z]\w+", panel["description"])))
            assert [link["url"] for link in panel.get("links", ())] == [f"${{runbooks}}/{name}.md" for name in named]
            linked.update(named)
    assert "NativeLinkCASPodDown" in linked
    assert linked <= {path.stem for path in (dashboards.ROOT / "docs/alerts").iterdir()}


@pytest.mark.parametrize("name", NAMES)
def test_a_dashboard_keeps_its_address_and_has_nothing_that_changes(
    models: dict[str, dict[str, Any]], name: str
) -> None:
    model = models[name]
    assert model["uid"] == f"nativelink-{name}"
    assert model.keys() & {"id", "version", "revision"} == set()
    assert [panel["id"] for panel in model["panels"]] == list(range(1, len(model["panels"]) + 1))
    (link,) = model["links"]
    assert (link["type"], link["tags"], link["includeVars"], link["keepTime"]) == (
        "dashboards",
        ["nativelink"],
        True,
        True,
    )
    assert model["tags"] == ["nativelink"], "the link finds it by that"


@pytest.mark.parametrize("name", NAMES)
def test_no_panel_covers_another_one_or_leaves_the_grid(models: dict[str, dict[str, Any]], name: str) -> None:
    places = [panel["gridPos"] for panel in models[name]["panels"]]
    for one, other in combinations(places, 2):
        apart = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart or above, (one, other)
    assert max(place["x"] + place["w"] for place in places) == 24


@pytest.mark.parametrize("name", NAMES)
def test_a_dashboard_has_the_variables_that_its_queries_use(models: dict[str, dict[str, Any]], name: str) -> None:
    variables = models[name]["templating"]["list"]
    queries = [target["expr"] for panel in dashboards.panels(models[name]) for target in panel["targets"]]
    asked = [each["query"]["query"] for each in variables if each["type"] == "query"]
    used = set(re.findall(r"\$([a-z_]+)", " ".join([*queries, *asked]))) - {"__rate_interval", "__range"}
    # All panels use the first one, and links the last one.
    assert used == {each["name"] for each in variables} - {"datasource", "runbooks"}


def test_the_variables_get_their_values() -> None:
    query = 'label_replace(x{cluster="$cluster"}[$__range], "pool", "$1", "pod", "(.+)") * ${price}'
    assert dashboards.substituted(query, {"cluster": "a", "__range": "5m", "price": "2"}) == (
        'label_replace(x{cluster="a"}[5m], "pool", "$1", "pod", "(.+)") * 2'
    )
    with pytest.raises(KeyError, match="missing"):
        dashboards.substituted("x{a='$missing'}", {})


@pytest.mark.parametrize("name", NAMES)
def test_prometheus_takes_each_query(server: Recorded, models: dict[str, dict[str, Any]], name: str) -> None:
    asked = [query for query in dashboards.queries(VALUES) if query.dashboard == name]
    assert len(asked) >= len(list(dashboards.panels(models[name])))
    for query in asked:
        assert "$" not in query.expr.replace('"$1"', "")
        server.ask("query", query=query.expr)
    for variable in models[name]["templating"]["list"]:
        if variable["type"] == "query":
            series = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert series
            server.ask("query", query=dashboards.substituted(series[1], VALUES))


def test_prometheus_refuses_a_wrong_query(server: Recorded) -> None:
    """The counter-run."""
    with pytest.raises(HTTPError) as refused:
        server.ask("query", query="sum(x")
    assert b"unclosed left parenthesis" in refused.value.read()


def test_there_is_a_picture_of_each_dashboard() -> None:
    for name in NAMES:
        picture = dashboards.ROOT / f"docs/images/dashboard-{name}.png"
        assert 10_000 < picture.stat().st_size < 150_000, name

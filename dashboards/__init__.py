"""Grafana dashboards as data. `make generate` writes them as JSON; users' renders copy those files.

NAME.yml describes a dashboard, which has the variables that its queries use. The first key of a panel is its kind (row,
graph, stack, number, share, table) with its title. `graph in s` is one with a unit of Grafana, which by default is
short, and percentunit for a share. The axis of a graph in percentunit ends at 1. Further keys of a panel are

- `text`, which may name runbooks;
- `query`, which is PromQL with fragments.yml. The legend of its series is the label that it groups by, or the title;
- in its place `queries`, by the legend of their series, or `quantiles`: the buckets of a histogram, below which half
  and 95% are, with `rare` also 99%;
- `warn` and `fail` of a number or a share: green, yellow from warn and red from fail (below, if fail is less);
- `links` of a table: URLs by the name of their column. Several queries make one row of what has the same labels.
"""

import copy
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils.specs import ROOT

FOLDER = ROOT / "roles/nativelink/files/dashboards"
NAMES = ("overview", "queue", "cache", "workers", "edge", "gitops")

Object = dict[str, Any]
_QUANTILES = (("half below", 0.5), ("95% below", 0.95), ("99% below", 0.99))
_GROUPED = re.compile(r"(?:histogram_quantile\([\d.]+, )?\w+ by \((?:le, )?(?!le\b)(\w+)\)")
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
# By kind: how many panels stand side by side at most, and their height.
_SIZES = {"row": (1, 1), "graph": (3, 7), "stack": (3, 7), "number": (6, 4), "share": (6, 4), "table": (1, 4)}


def _read(name: str) -> Any:
    return yaml.safe_load(Path(__file__).with_name(f"{name}.yml").read_text())


_FRAGMENTS: Mapping[str, str] = _read("fragments")
_SKELETON: Mapping[str, Any] = _read("skeleton")


def _filled(query: str) -> str:
    """Return a query with the text of its fragments, which may name others, and may have arguments."""

    def text(found: re.Match[str]) -> str:
        arguments = (found[2] or "").split("; ")
        return re.sub(r"<(\d)>", lambda number: arguments[int(number[1]) - 1], _FRAGMENTS[found[1]])

    while (filled := re.sub(r"<<(\w+)(?:\(((?:(?!<<|>>).)*)\))?>>", text, query)) != query:  # the innermost ones first
        query = filled
    return query


def models() -> dict[str, Object]:
    """Return the dashboards as Grafana takes them, by their names."""
    return {name: _model(name, _read(name)) for name in NAMES}


def _model(name: str, board: Mapping[str, Any]) -> Object:
    panels = list(_placed([_panel(number, part) for number, part in enumerate(board["panels"], 1)]))
    text = json.dumps(panels) + "$datasource $runbooks"
    return {
        **_SKELETON["dashboard"],
        "uid": f"nativelink-{name}",
        "title": f"NativeLink / {board['title']}",
        "description": board["text"],
        "templating": {"list": [_variable(*each) for each in _SKELETON["variables"].items() if f"${each[0]}" in text]},
        "panels": panels,
    }


def _variable(name: str, wanted: Mapping[str, Any]) -> Object:
    made = {**_SKELETON["variable"], "name": name, **wanted}
    match made.setdefault("type", "query"):
        case "query":
            query = {"query": _filled(wanted["query"]), "refId": name}
            made |= {"query": query, "datasource": _SOURCE, "refresh": 2, "sort": 1}
        case "textbox":
            made["current"] = {"selected": True, "text": wanted["query"], "value": wanted["query"]}
    return made


def _panel(number: int, part: Mapping[str, Any]) -> tuple[str, Object]:
    """Return the kind of a panel, and its model without its place."""
    heading, title = next(iter(part.items()))
    kind, _, unit = heading.partition(" in ")
    made: Object = {**copy.deepcopy(_SKELETON[kind]), "id": number, "title": title}
    if kind == "row":
        return kind, made
    defaults = made["fieldConfig"]["defaults"]
    defaults["unit"] = unit or ("percentunit" if kind == "share" else "short")
    made |= {**_SKELETON["panel"], "datasource": _SOURCE, "description": part["text"]}
    runbooks = dict.fromkeys(re.findall(r"NativeLink[A-Z]\w+", part["text"]))
    made["links"] = [{**_SKELETON["link"], "title": name, "url": f"${{runbooks}}/{name}.md"} for name in runbooks]
    made["targets"] = [
        {"datasource": _SOURCE, "expr": _filled(query), "legendFormat": legend, "refId": reference}
        for reference, (legend, query) in zip("ABCDEFGH", _queries(part, title).items(), strict=False)
    ]
    if kind not in ("graph", "stack"):  # the values at the end of the range only
        for target in made["targets"]:
            target |= {"instant": True, "range": False}
    match kind:
        case "graph" | "stack" if unit == "percentunit":
            defaults["max"] = 1
        case "number" | "share":
            defaults["thresholds"] = {"mode": "absolute", "steps": _steps(part.get("warn"), part.get("fail"))}
        case "table":
            _tabulate(made, part.get("links", {}))
    return kind, made


def _queries(part: Mapping[str, Any], title: str) -> Mapping[str, str]:
    """Return the queries of a panel by the legend of their series."""
    if "quantiles" in part:
        shown = _QUANTILES if part.get("rare") else _QUANTILES[:2]
        return {name: f"<<quantile({at}; le; {part['quantiles']})>>" for name, at in shown}
    if "query" in part:
        grouped = _GROUPED.match(_filled(part["query"]))
        return {f"{{{{{grouped[1]}}}}}" if grouped else title: part["query"]}
    return dict(part["queries"])


def _steps(warn: float | None, fail: float | None) -> list[Object]:
    steps = [(None, "green"), (warn, "yellow"), (fail, "red")]
    if warn is not None and fail is not None and fail < warn:
        steps = [(None, "red"), (fail, "yellow"), (warn, "green")]
    return [{"color": color, "value": at} for at, color in steps if at is not None or color == steps[0][1]]


def _tabulate(made: Object, links: Mapping[str, str]) -> None:
    names = {}
    for target in made["targets"]:
        target["format"] = "table"
        names[f"Value #{target['refId']}" if len(made["targets"]) > 1 else "Value"] = target["legendFormat"]
    made["transformations"] = [
        {"id": "merge", "options": {}},
        {"id": "organize", "options": {"excludeByName": {"Time": True}, "renameByName": names}},
    ]
    for column, url in links.items():
        shown = {"id": "links", "value": [{"title": "Runbook", "url": url, "targetBlank": True}]}
        override = {"matcher": {"id": "byName", "options": column}, "properties": [shown]}
        made["fieldConfig"]["overrides"].append(override)


def _placed(parts: Sequence[tuple[str, Object]]) -> Iterator[Object]:
    """Yield panels with their places. Those of a size in a row fill the lines of the grid, which has 24 columns."""
    y = 0
    for (most, height), group in itertools.groupby(parts, lambda part: _SIZES[part[0]]):
        alike = [panel for _, panel in group]
        lines = -(-len(alike) // most)
        for line in range(lines):
            line_of = alike[line * len(alike) // lines : (line + 1) * len(alike) // lines]
            edges = [24 * position // len(line_of) for position in range(len(line_of) + 1)]
            for panel, (x, end) in zip(line_of, itertools.pairwise(edges), strict=True):
                yield {**panel, "gridPos": {"h": height, "w": end - x, "x": x, "y": y}}
            y += height


def files() -> dict[Path, str]:
    """Return the text of each generated file, by absolute path."""
    return {
        FOLDER / f"{name}.json": json.dumps(model, indent=2, sort_keys=True) + "\n" for name, model in models().items()
    }


def panels(model: Mapping[str, Any]) -> Iterator[Object]:
    """Yield the panels of a dashboard without its rows."""
    yield from (panel for panel in model["panels"] if panel["type"] != "row")

"""Grafana dashboards as code. `python -m dashboards` writes them as JSON; users' renders copy those files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ansible_collections.nativelink.gitops.plugins.plugin_utils.specs import ROOT
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from dashboards import cache, edge, gitops, overview, queue, workers

FOLDER = ROOT / "roles/nativelink/files/dashboards"
MODULES = {
    "overview": overview,
    "queue": queue,
    "cache": cache,
    "workers": workers,
    "edge": edge,
    "gitops": gitops,
}
# Panels that have nothing to show while all is well.
EMPTY_WHEN_WELL = frozenset({("overview", "Firing alerts")})


class Query(NamedTuple):
    """A query of a panel, with the values of its variables."""

    dashboard: str
    panel: str
    expr: str


def models() -> dict[str, dict[str, Any]]:
    """Return the dashboards as Grafana takes them, by their names."""
    return {name: json.loads(JSONEncoder().encode(module.made().build())) for name, module in MODULES.items()}


def files() -> dict[Path, str]:
    """Return the text of each generated file, by absolute path."""
    return {
        FOLDER / f"{name}.json": json.dumps(model, indent=2, sort_keys=True) + "\n" for name, model in models().items()
    }


def queries(values: Mapping[str, str]) -> list[Query]:
    """Return the queries of all panels.

    `values` are those of Grafana's variables, by name without the $, such as `cluster` or `__rate_interval`. KeyError
    if one is missing.
    """
    return [
        Query(name, panel["title"], substituted(target["expr"], values))
        for name, model in models().items()
        for panel in panels(model)
        for target in panel["targets"]
    ]


def panels(model: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the panels of a dashboard without its rows."""
    yield from (panel for panel in model["panels"] if panel["type"] != "row")


def substituted(query: str, values: Mapping[str, str]) -> str:
    """Return a query with the values of its variables. A $1 of label_replace stays."""
    return re.sub(r"\$\{?([a-z_]+)\}?", lambda found: values[found[1]], query)

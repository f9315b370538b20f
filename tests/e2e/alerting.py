"""The bundled Prometheus of a tree: its targets, and its alerts with shorter times."""

from __future__ import annotations

import json
import re
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from testbed.cluster import Cluster
from testbed.waiting import until
from tests.monitoring.hurried import hurried

Object = dict[str, Any]
HURRY = 10
"""All times of a hurried tree's monitoring are divided by this."""


@dataclass(frozen=True)
class Prometheus:
    """The Prometheus of a tree in a namespace."""

    where: Cluster
    namespace: str

    def ask(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer of Prometheus' API."""
        address = self.where.service_address(self.namespace, "nativelink-prometheus")
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"http://{address}:9090/api/v1/{path}?{query}", timeout=10) as answer:
            return json.load(answer)["data"]

    def series(self, query: str) -> list[Object]:
        """Return the result of a query."""
        return list(self.ask("query", query=query)["result"])

    def targets(self) -> dict[str, list[str]]:
        """Return the health of the targets of each job."""
        found: dict[str, list[str]] = {}
        for each in self.ask("targets", state="active")["activeTargets"]:
            found.setdefault(each["labels"]["job"], []).append(each["health"])
        return found

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire, without the common prefix."""
        alerts = self.ask("alerts")["alerts"]
        return {each["labels"]["alertname"].removeprefix("NativeLink") for each in alerts if each["state"] == "firing"}

    def fires(self, *names: str, seconds: float = 120) -> None:
        """Wait until each of these alerts has fired since the call. Other alerts may fire too."""
        seen: set[str] = set()

        def look() -> bool:
            seen.update(self.firing())
            return seen >= set(names)

        began = time.monotonic()
        until(f"the alerts {', '.join(names)}", look, seconds, lambda: f": {sorted(seen)} fired")
        print(f"{', '.join(names)} after {time.monotonic() - began:.0f} s; all: {', '.join(sorted(seen))}")

    def quiet(self, *allowed: str, seconds: float = 150) -> None:
        """Wait until no alert fires, except for allowed ones."""
        until("all alerts to end", lambda: self.firing() <= set(allowed), seconds, lambda: f": {self.firing()} fire")


def impatient(text: str) -> str:
    """Shorten the waits, ranges and offsets of a file of alerting rules."""
    groups = hurried(yaml.safe_load(text)["groups"], HURRY)
    for rule in (rule for group in groups for rule in group["rules"]):
        rule["for"] = f"{min(15, int(rule.get('for', '0s').removesuffix('s')))}s"
    return yaml.safe_dump({"groups": groups})


def hurry(tree: Path) -> None:
    """Shorten the times of the monitoring in a folder of rendered files."""
    for name, change in (
        ("alert-rules", impatient),
        ("prometheus", lambda text: re.sub(r"(scrape|evaluation)_interval: 15s", r"\1_interval: 2s", text)),
        ("collector", lambda text: text.replace("metric_expiration: 60s", "metric_expiration: 8s")),
    ):
        file = tree / "monitoring" / f"{name}.yaml"
        before = file.read_text()
        file.write_text(change(before))
        assert file.read_text() != before, f"{name} has no time to shorten"
    for file in tree.rglob("*.yaml"):
        file.write_text(file.read_text().replace('"15000"', '"2000"'))  # between two reports of a workload

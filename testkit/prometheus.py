"""Prometheus and its Alertmanager on this machine or on a cluster, and rules that wait less, for alerts that fire."""

import contextlib
import copy
import json
import re
import subprocess
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils.context import context

from testbed import build
from testbed.cluster import Cluster
from testbed.ports import free_port
from testbed.waiting import until
from testkit.trees import Object, values_of

_OPTIONS = {
    "prometheus": ["--storage.tsdb.path=data"],
    "alertmanager": ["--storage.path=data", "--cluster.listen-address="],
}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SPAN = re.compile(r"(?:(?<=\[)|(?<=offset ))\d+[smhd]")  # a range or an offset
_SHORTEST, _LONGEST_WAIT = 5, 15  # seconds; a range needs two samples to be of use


@contextlib.contextmanager
def local(name: str, folder: Path, settings: Mapping[str, Any]) -> Iterator[str]:
    """Run ``prometheus`` or ``alertmanager`` with these settings, and yield its address when it is ready.

    Its data, its log and the rules that the settings name are in the folder.
    """
    program = build.program(name)
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(dict(settings)))
    address = f"127.0.0.1:{free_port()}"
    command = [program, f"--config.file={name}.yaml", f"--web.listen-address={address}", *_OPTIONS[name]]
    log = folder / f"{name}.log"
    with log.open("w") as output, subprocess.Popen(command, cwd=folder, stdout=output, stderr=output) as process:
        try:
            until(f"{name} to be ready", lambda: urlopen(f"http://{address}/-/ready").status == 200, 60, log.read_text)
            yield f"http://{address}"
        finally:
            process.kill()


@dataclass(frozen=True)
class Alerts:
    """The alerts of the Prometheus at an address, such as ``http://127.0.0.1:9090``."""

    url: str

    def fetch(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer of Prometheus' API."""
        query = urllib.parse.urlencode(parameters)
        with urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=10) as answer:
            return json.load(answer)["data"]

    def series(self, query: str) -> list[Object]:
        """Return the result of a query."""
        return list(self.fetch("query", query=query)["result"])

    def targets(self) -> dict[str, list[str]]:
        """Return the health of the targets of each job."""
        found: dict[str, list[str]] = {}
        for each in self.fetch("targets", state="active")["activeTargets"]:
            found.setdefault(each["labels"]["job"], []).append(each["health"])
        return found

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire, without the common prefix."""
        alerts = self.fetch("alerts")["alerts"]
        return {each["labels"]["alertname"].removeprefix("NativeLink") for each in alerts if each["state"] == "firing"}

    def fires(self, *names: str, seconds: float = 120) -> None:
        """Wait until each of these alerts has fired since the call. Other alerts may fire too."""
        seen: set[str] = set()

        def look() -> bool:
            seen.update(self.firing())
            return seen >= set(names)

        until(f"the alerts {', '.join(names)}", look, seconds, lambda: f": {sorted(seen)} fired")

    def ended(self, *names: str) -> None:
        """Wait until none of these alerts fires, or no alert at all."""

        def left() -> set[str]:
            firing = self.firing()
            return firing & set(names) if names else firing

        until("alerts to end", lambda: not left(), 150, lambda: f": {left()} fire")


@contextlib.contextmanager
def engine_alerts(folder: Path, addresses: Mapping[str, str], **variables: Any) -> Iterator[Alerts]:
    """Start a Prometheus with a cluster's alerts about its GitOps engine. It scrapes the addresses of some jobs.

    ``variables`` are those of the cluster, whose name is ``cluster``.
    """
    stated = {"nativelink_prometheus": "operator", "nativelink_metrics_namespaces": ["monitoring"], **variables}
    groups = context(values_of(**stated)).prometheus.alerts
    (group,) = [group for group in groups if group["name"] == "nativelink-gitops"]
    (folder / "rules.yaml").write_text(impatient({"groups": [group]}, factor=60))  # scrapes are a second apart
    jobs = [
        {"job_name": job, "honor_labels": True, "static_configs": [{"targets": [address]}]}
        for job, address in addresses.items()
    ]
    times = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config = {"global": times, "rule_files": ["rules.yaml"], "scrape_configs": jobs}
    with local("prometheus", folder, config) as address:
        made = Alerts(address)
        jobs_up = {job: ["up"] for job in addresses}
        until(f"{', '.join(addresses)} to be scraped", lambda: made.targets() == jobs_up, 30)
        yield made


@contextlib.contextmanager
def forwarded(where: Cluster, namespace: str, what: str, port: int) -> Iterator[str]:
    """Forward a port of a pod to this machine, which NetworkPolicies may keep out. Yield the address."""
    command = where.command("-n", namespace, "port-forward", what, f":{port}")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            assert line.startswith("Forwarding from 127.0.0.1:"), f"kubectl port-forward printed {line!r}"
            yield line.split()[2]
        finally:
            process.kill()


def impatient(rules: Object, factor: int) -> str:
    """Return a file of alerting rules whose waits, ranges and offsets are divided by a factor, in whole seconds."""

    def shorter(span: str) -> int:
        return max(_SHORTEST, round(int(span[:-1]) * _UNITS[span[-1]] / factor))

    groups = copy.deepcopy(rules["groups"])
    for rule in (rule for group in groups for rule in group["rules"]):
        rule["expr"] = _SPAN.sub(lambda found: f"{shorter(found[0])}s", rule["expr"])
        rule["for"] = f"{min(_LONGEST_WAIT, shorter(rule['for']))}s" if "for" in rule else "0s"
    return yaml.safe_dump({"groups": groups})


def hurry(tree: Path) -> None:
    """Shorten the times of the monitoring in a folder of rendered files, most of them to a tenth."""
    for name, change in (
        ("alert-rules", lambda text: impatient(yaml.safe_load(text), factor=10)),
        ("prometheus", lambda text: re.sub(r"(scrape|evaluation)_interval: 15s", r"\1_interval: 2s", text)),
        ("collector", lambda text: text.replace("metric_expiration: 60s", "metric_expiration: 8s")),
    ):
        file = tree / "monitoring" / f"{name}.yaml"
        before = file.read_text()
        file.write_text(change(before))
        assert file.read_text() != before, f"{name} has no time to shorten"
    for file in tree.rglob("*.yaml"):
        file.write_text(file.read_text().replace('"15000"', '"2000"'))  # between two reports of a workload

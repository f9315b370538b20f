"""A real Alertmanager with the rendered rules notifies no one of what a firing alert already says."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from testbed.waiting import until
from testkit.prometheus import local
from tests.monitoring.entries import files

RULES = "monitoring/inhibit-rules.yaml"
Label = dict[str, str]


# A firing alert > one that says nothing new beside it | one that does. All names begin with NativeLink.
ROWS = """
RedisDown > SchedulerDown | SchedulerDown cluster=other
RedisDown > DemandLost | CASPodDown
SchedulerDown > SchedulerNotMatching | SchedulerNotMatching namespace=other
SchedulerDown > EdgeErrors route=nativelink-execution | EdgeErrors route=nativelink-cache
SchedulerLoopDead pod=a > SchedulerNotMatching pool=default | RedisFull
DemandLost > KEDAFallback pool=default | CASPodDown
DemandLost > MetricsLost source=scheduler | MetricsLost source=cas
CASPodDown pod=a > UploadErrors pod=b | CASDiskFull
CASPodDown > EdgeGivesUp route=nativelink-cache | EdgeGivesUp route=nativelink-execution
CASInodesFull > UploadErrors | UploadsRefused
WorkersPending pool=large > PoolAtMaximum pool=large | PoolAtMaximum pool=default
WorkerOutOfMemory pod=a > WorkersGivenUp | DrainStuck
EdgeErrors route=nativelink-cache > EdgeGivesUp route=nativelink-cache | EdgeGivesUp route=nativelink-execution
GitOpsFailing > GitOpsOutOfSync | SchedulerDown
"""


def alert(text: str) -> Label:
    name, *labels = text.split()
    own = dict(label.split("=") for label in labels)
    return {"alertname": f"NativeLink{name}", "cluster": "test", "namespace": "nativelink", **own}


INHIBITED = [tuple(map(alert, re.split("[>|]", row))) for row in ROWS.strip().splitlines()]


# The Alertmanager sees all of them at once, so each row has a cluster of its own.
def of_row(number: int, labels: Label) -> Label:
    return dict(sorted({**labels, "cluster": f"{labels['cluster']}-{number}"}.items()))


@contextmanager
def alertmanager(folder: Path, rules: list[Any]) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Run an Alertmanager in which all alerts fire. Yield a function that returns their states."""
    settings = {"route": {"receiver": "none"}, "receivers": [{"name": "none"}], "inhibit_rules": rules}
    fired = [{"labels": of_row(number, each)} for number, row in enumerate(INHIBITED) for each in row]

    body = json.dumps(fired).encode()
    with local("alertmanager", folder, settings) as address:
        url = f"{address}/api/v2/alerts"

        def states() -> list[dict[str, Any]]:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return list(json.loads(answer.read()))

        sent = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        urllib.request.urlopen(sent, timeout=10).close()
        until("the alerts to fire", lambda: len(states()) == len(fired), 30, (folder / "alertmanager.log").read_text)
        yield states


def silenced(states: list[dict[str, Any]]) -> list[Label]:
    return [dict(sorted(each["labels"].items())) for each in states if each["status"]["inhibitedBy"]]


def test_alerts_that_say_nothing_new_are_inhibited(tmp_path: Path) -> None:
    """The second alert of each row is inhibited, and the first and the third are not."""
    rules = yaml.safe_load(files("memory")[RULES])["inhibit_rules"]
    wanted = [of_row(number, target) for number, (_, target, _) in enumerate(INHIBITED)]
    with alertmanager(tmp_path, rules) as states:
        until("the inhibited alerts", lambda: len(silenced(states())) >= len(wanted), 30)
        assert sorted(silenced(states()), key=str) == sorted(wanted, key=str)


def test_without_rules_nothing_is_inhibited(tmp_path: Path) -> None:
    """The counter-run."""
    with alertmanager(tmp_path, []) as states:
        assert silenced(states()) == []


def test_each_rule_is_tried() -> None:
    """Each rule has a row."""
    rules = yaml.safe_load(files("memory")[RULES])["inhibit_rules"]
    for rule in rules:
        source, target = (rule[f"{side}_matchers"][0] for side in ("source", "target"))
        assert any(first["alertname"] in source and second["alertname"] in target for first, second, _ in INHIBITED), (
            rule
        )


def test_the_prometheus_operator_has_the_same_rules() -> None:
    """The AlertmanagerConfig and the plain file say the same."""
    tree = files("memory", nativelink_prometheus="operator", nativelink_metrics_namespaces=["metrics"])
    assert RULES not in tree

    def plain(side: list[dict[str, str]]) -> list[str]:
        return [f'{each["name"]}{each["matchType"]}"{each["value"]}"' for each in side]

    rules = [
        {f"{side}_matchers": plain(each[f"{side}Match"]) for side in ("source", "target")} | {"equal": each["equal"]}
        for each in yaml.safe_load(tree["monitoring/alertmanagerconfig.yaml"])["spec"]["inhibitRules"]
    ]
    assert rules == yaml.safe_load(files("memory")[RULES])["inhibit_rules"]

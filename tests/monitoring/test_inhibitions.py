"""A real Alertmanager with the rendered rules notifies no one of what a firing alert already says."""

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


def alert(text: str, row: int) -> Label:
    """Return the labels. The Alertmanager sees all alerts at once, so each row has a cluster of its own."""
    name, *labels = text.split()
    own = {"cluster": "test", "namespace": "nativelink", **dict(label.split("=") for label in labels)}
    return {**own, "alertname": f"NativeLink{name}", "cluster": f"{own['cluster']}-{row}"}


INHIBITED = [[alert(each, row) for each in re.split("[>|]", text)] for row, text in enumerate(ROWS.split("\n")) if text]


@contextmanager
def alertmanager(folder: Path, rules: list[Any]) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Run an Alertmanager in which all alerts fire. Yield a function that returns their states."""
    settings = {"route": {"receiver": "none"}, "receivers": [{"name": "none"}], "inhibit_rules": rules}
    fired = [{"labels": each} for row in INHIBITED for each in row]
    with local("alertmanager", folder, settings) as address:
        url = f"{address}/api/v2/alerts"

        def states() -> list[dict[str, Any]]:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return list(json.load(answer))

        sent = urllib.request.Request(url, json.dumps(fired).encode(), {"Content-Type": "application/json"})
        urllib.request.urlopen(sent, timeout=10).close()
        until("the alerts to fire", lambda: len(states()) == len(fired), 30, (folder / "alertmanager.log").read_text)
        yield states


def silenced(states: list[dict[str, Any]]) -> list[str]:
    return sorted(str(sorted(each["labels"].items())) for each in states if each["status"]["inhibitedBy"])


def test_alerts_that_say_nothing_new_are_inhibited(tmp_path: Path) -> None:
    """The second alert of each row is inhibited, and the first and the third are not."""
    rules = yaml.safe_load(files("memory")[RULES])["inhibit_rules"]
    wanted = sorted(str(sorted(target.items())) for _, target, _ in INHIBITED)
    with alertmanager(tmp_path, rules) as states:
        until("the inhibited alerts", lambda: len(silenced(states())) >= len(wanted), 30)
        assert silenced(states()) == wanted


def test_without_rules_nothing_is_inhibited(tmp_path: Path) -> None:
    """The counter-run."""
    with alertmanager(tmp_path, []) as states:
        assert silenced(states()) == []


def test_each_rule_is_tried() -> None:
    """Each rule has a row."""
    rules = yaml.safe_load(files("memory")[RULES])["inhibit_rules"]
    for rule in rules:
        source, target = (rule[f"{side}_matchers"][0] for side in ("source", "target"))
        tried = (one["alertname"] in source and other["alertname"] in target for one, other, _ in INHIBITED)
        assert any(tried), rule


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

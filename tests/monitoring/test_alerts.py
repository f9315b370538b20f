"""Each alert fires on series like the recorded ones, and does not on series that only look like it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

import pytest
import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils import monitoring

from testbed import build
from testkit.trees import ROOT
from tests.monitoring.entries import VARIABLES, files

RULES = "monitoring/alert-rules.yaml"
Case = dict[str, Any]
_FILE = yaml.safe_load((Path(__file__).parent / "cases.yml").read_text())
SEVERITIES: dict[str, str] = {name: alert["severity"] for name, alert in _FILE["alerts"].items()}
"""The severity of each alert, by its name."""
CASES: list[Case] = [{"alert": name, **case} for name, alert in _FILE["alerts"].items() for case in alert["cases"]]
ONLY_ON_REDIS = {
    "NativeLinkSchedulerLoopDead",
    "NativeLinkActionsUnmatched",
    "NativeLinkRedisDown",
    "NativeLinkRedisFull",
}


@cache
def known_rules(backend: str) -> dict[str, Any]:
    """Return the alerting rules of a cluster as it is, by their names."""
    return rules(backend)


def rules(backend: str, **variables: Any) -> dict[str, Any]:
    """Return the alerting rules of a cluster by their names."""
    groups = yaml.safe_load(files(backend, **variables)[RULES])["groups"] or []
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    tool = build.program("promtool")
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=False)


def expected(case: Case, rule: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a case expects, in the words of promtool. Only texts without templates come from the rule."""
    shared = {"cluster": "test", "namespace": "nativelink", "severity": SEVERITIES[case["alert"]]}
    told = {
        "description": rule["annotations"]["description"],
        "runbook_url": f"https://example.com/alerts/{case['alert']}.md",
    }
    return [
        {"exp_labels": {**shared, **labels}, "exp_annotations": {"summary": summary, **told}}
        for summary, labels in case.get("says", {}).items()
    ]


def series(case: Case) -> list[dict[str, str]]:
    """Return the series of a case, with the labels that `$name` stands for."""
    text = case.get("series", "")
    while "$" in text:
        text = Template(text).substitute(_FILE["labels"])
    parts = (line.partition("} ") for line in text.splitlines())
    return [{"series": name + "}", "values": values} for name, _, values in parts]


def unit_test(case: Case, rule: dict[str, Any]) -> dict[str, Any]:
    asked = {"eval_time": case["at"], "alertname": case["alert"], "exp_alerts": expected(case, rule)}
    name = f"{case['alert']}: {case.get('fires') or case['quiet']}"
    return {"name": name, "interval": "1m", "input_series": series(case), "alert_rule_test": [asked]}


def judged(folder: Path, cases: Iterable[Case]) -> subprocess.CompletedProcess[str]:
    """Run cases. Each meets only the rules of its alert, because promtool evaluates all rules for each minute."""
    tests = []
    for number, case in enumerate(cases):
        rule = known_rules(case.get("backend", "redis"))[case["alert"]]
        known, test = (folder / f"{kind}-{number}.yaml" for kind in ("rules", "test"))
        known.write_text(yaml.safe_dump({"groups": [{"name": case["alert"], "rules": [rule]}]}))
        content = {"rule_files": [known.name], "evaluation_interval": "1m", "tests": [unit_test(case, rule)]}
        test.write_text(yaml.safe_dump(content))
        tests.append(test)
    return promtool("test", "rules", *tests)


def test_alerts_fire_and_stay_quiet(tmp_path: Path) -> None:
    """promtool finds the alerts of each case, with their labels and summaries."""
    done = judged(tmp_path, CASES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_wrong_expectation_is_found(tmp_path: Path) -> None:
    """The counter-run: promtool fails if a case expects another summary, or an alert that does not fire."""
    firing = next(case for case in CASES if case["alert"] == "NativeLinkRedisDown" and "fires" in case)
    for wrong in ({"says": {"Redis is down": {}}}, {"at": "1m"}):
        assert judged(tmp_path, [{**firing, **wrong}]).returncode == 1


def test_each_alert_has_a_firing_and_a_quiet_case() -> None:
    """Each alert is tried in both ways."""
    for kind in ("fires", "quiet"):
        assert {case["alert"] for case in CASES if kind in case} == set(SEVERITIES)
    assert all(("fires" in case) == bool(case.get("says")) for case in CASES)


def test_each_backend_has_its_alerts() -> None:
    """A cluster with everything has all alerts, except that some are about Redis."""
    assert {name: rule["labels"]["severity"] for name, rule in rules("redis").items()} == SEVERITIES
    assert set(rules("memory")) == set(SEVERITIES) - ONLY_ON_REDIS


@pytest.mark.parametrize(
    ("variables", "gone"),
    [
        (
            {"nativelink_prometheus_scrapes": ["edge", "keda", "gitops"]},
            {"NativeLinkCASPodDown", "NativeLinkDrainStuck"},
        ),
        ({"nativelink_prometheus_scrapes": ["cluster"]}, {"NativeLinkEdgeErrors", "NativeLinkKEDAFallback"}),
        ({"nativelink_metrics": ["scheduler"]}, {"NativeLinkUploadErrors", "NativeLinkCacheHitRateCollapsed"}),
        ({"nativelink_version": "v1.3.2"}, {"NativeLinkUploadErrors", "NativeLinkWorkersGivenUp"}),
        ({"nativelink_edge_tls_secret": ""}, {"NativeLinkCertificateExpiry"}),
        (
            {"nativelink_mutual_tls_secret": "", "nativelink_mutual_tls_expires": ""},
            {"NativeLinkMutualTLSExpiry"},
        ),
        ({"nativelink_scaling": "none"}, {"NativeLinkDemandLost", "NativeLinkPoolAtMaximum", "NativeLinkKEDAFallback"}),
        ({"gitops_provider": "none"}, {"NativeLinkGitOpsOutOfSync", "NativeLinkGitOpsFailing"}),
        (
            {"nativelink_prometheus": "annotations", "nativelink_prometheus_scrapes": []},
            {"NativeLinkSchedulerNotMatching", "NativeLinkDemandLost", "NativeLinkPoolAtMaximum"},
        ),
    ],
)
def test_an_alert_needs_its_series(variables: dict[str, Any], gone: set[str]) -> None:
    """An alert whose series do not exist in a cluster is not rendered."""
    assert gone <= set(rules("memory"))
    assert not gone & set(rules("memory", **variables))


def test_an_existing_prometheus_has_all_alerts() -> None:
    """A Prometheus of the user scrapes what exists, so an operator's rules are complete without a list of scrapes."""
    asked = {"nativelink_metrics_namespaces": ["metrics"], "nativelink_prometheus_scrapes": []}
    tree = files("redis", nativelink_prometheus="operator", **asked)
    rule = yaml.safe_load(tree["monitoring/alerts.yaml"])
    assert (rule["kind"], rule["metadata"]["name"]) == ("PrometheusRule", "nativelink-alerts")
    found = {each["alert"] for group in rule["spec"]["groups"] for each in group["rules"]}
    assert found == set(SEVERITIES)


@pytest.mark.parametrize("backend", VARIABLES)
def test_the_rules_are_sound(backend: str, tmp_path: Path) -> None:
    """promtool accepts the rules without a remark."""
    file = tmp_path / "rules.yaml"
    file.write_text(files(backend)[RULES])
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", file)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_index_of_the_documentation_is_complete() -> None:
    """docs/alerts/index.md has each alert once, with its severity."""
    text = (ROOT / "docs/alerts/index.md").read_text()
    found = re.findall(r"^- \[(\w+)\]\(\1\.md\) \((critical|warning)\): ", text, re.MULTILINE)
    assert sorted(found) == sorted(SEVERITIES.items())


def test_each_alert_has_a_runbook() -> None:
    """The pages that the alerts link to exist, and there is none for an alert that does not exist."""
    pages = {path.stem for path in (ROOT / "docs/alerts").glob("NativeLink*.md")}
    assert pages == set(SEVERITIES)


def test_an_inhibition_hides_nothing_that_is_more_severe() -> None:
    """All names of inhibitions exist, and no warning silences a page."""
    for each in monitoring.DATA["inhibitions"]:
        assert {*each["sources"], *each["targets"]} <= set(SEVERITIES)
        if "warning" in {SEVERITIES[name] for name in each["sources"]}:
            assert {SEVERITIES[name] for name in each["targets"]} == {"warning"}, each

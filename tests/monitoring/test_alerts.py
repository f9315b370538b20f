"""Each alert fires on series like the recorded ones, and does not on series that only look like it."""

import re
import subprocess
from collections.abc import Iterable
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
_FILE = yaml.load((Path(__file__).parent / "cases.yml").read_text(), yaml.CSafeLoader)
SEVERITIES: dict[str, str] = {name: severity for severity in ("critical", "warning") for name in _FILE[severity]}
"""The severity of each alert, by its name."""
ONLY_ON_REDIS = {f"NativeLink{name}" for name in ("SchedulerLoopDead", "ActionsUnmatched", "RedisDown", "RedisFull")}


def case_of(alert: str, stated: Case) -> Case:
    heading, text = next(iter(stated.items()))
    ((at, memory, what),) = re.findall(r"^at (\w+)( in memory)?, (.+)", heading)
    backend = "memory" if memory else "redis"
    return {**stated, "alert": alert, "at": at, "backend": backend, "what": what, "series": text or ""}


CASES = [case_of(name, case) for name, severity in SEVERITIES.items() for case in _FILE[severity][name]]


def rules(backend: str, **variables: Any) -> dict[str, Any]:
    groups = yaml.load(files(backend, **variables)[RULES], yaml.CSafeLoader)["groups"] or []
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
    text = case["series"]
    while "$" in text:
        text = Template(text).substitute(_FILE["labels"])
    parts = (line.partition("} ") for line in text.splitlines())
    return [{"series": name + "}", "values": values} for name, _, values in parts]


def judged(folder: Path, cases: Iterable[Case]) -> subprocess.CompletedProcess[str]:
    """Run cases. Each meets only the rules of its alert, because promtool evaluates all rules for each minute."""
    tests, all_rules = [], {backend: rules(backend) for backend in VARIABLES}
    for number, case in enumerate(cases):
        rule = all_rules[case["backend"]][case["alert"]]
        known, test = (folder / f"{kind}-{number}.yaml" for kind in ("rules", "test"))
        known.write_text(yaml.safe_dump({"groups": [{"name": case["alert"], "rules": [rule]}]}))
        asked = {"eval_time": case["at"], "alertname": case["alert"], "exp_alerts": expected(case, rule)}
        run = {"name": f"{case['alert']}: {case['what']}", "interval": "1m", "input_series": series(case)}
        content = {"rule_files": [known.name], "tests": [{**run, "alert_rule_test": [asked]}]}
        test.write_text(yaml.safe_dump({"evaluation_interval": "1m", **content}))
        tests.append(test)
    return promtool("test", "rules", *tests)


def test_alerts_fire_and_stay_quiet(tmp_path: Path) -> None:
    """promtool finds the alerts of each case, with their labels and summaries."""
    done = judged(tmp_path, CASES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_wrong_expectation_is_found(tmp_path: Path) -> None:
    """The counter-run: promtool fails if a case expects another summary, or an alert that does not fire."""
    firing = next(case for case in CASES if case["alert"] == "NativeLinkRedisDown" and "says" in case)
    for wrong in ({"says": {"Redis is down": {}}}, {"at": "1m"}):
        assert judged(tmp_path, [{**firing, **wrong}]).returncode == 1


def test_each_alert_has_a_firing_and_a_quiet_case() -> None:
    for fires in (True, False):
        assert {case["alert"] for case in CASES if ("says" in case) is fires} == set(SEVERITIES)


def test_each_backend_has_its_alerts() -> None:
    """A cluster with everything has all alerts, except that some are about Redis."""
    assert {name: rule["labels"]["severity"] for name, rule in rules("redis").items()} == SEVERITIES
    assert set(rules("memory")) == set(SEVERITIES) - ONLY_ON_REDIS


# Alerts whose series do not exist with these variables: names without NativeLink.
GONE: list[tuple[dict[str, Any], str]] = [
    ({"nativelink_prometheus_scrapes": ["edge", "keda", "gitops"]}, "CASPodDown DrainStuck"),
    ({"nativelink_prometheus_scrapes": ["cluster"]}, "EdgeErrors KEDAFallback"),
    ({"nativelink_metrics": ["scheduler"]}, "UploadErrors CacheHitRateCollapsed RetentionShort"),
    ({"nativelink_version": "v1.3.2"}, "UploadErrors WorkersGivenUp"),
    ({"nativelink_cas_store": "object_store"}, "RetentionShort"),
    ({"nativelink_edge_tls_secret": ""}, "CertificateExpiry"),
    ({"nativelink_edge_client_ca_secret": ""}, "ClientCAExpiry"),
    ({"nativelink_mutual_tls_secret": "", "nativelink_mutual_tls_expires": ""}, "MutualTLSExpiry"),
    ({"nativelink_scaling": "none"}, "DemandLost PoolAtMaximum KEDAFallback"),
    ({"gitops_provider": "none"}, "GitOpsOutOfSync GitOpsFailing"),
    (
        {"nativelink_prometheus": "annotations", "nativelink_prometheus_scrapes": []},
        "SchedulerNotMatching DemandLost PoolAtMaximum",
    ),
]


@pytest.mark.parametrize(("variables", "gone"), GONE)
def test_an_alert_without_its_series_is_not_rendered(variables: dict[str, Any], gone: str) -> None:
    names = {f"NativeLink{name}" for name in gone.split()}
    assert names <= set(rules("memory"))
    assert not names & set(rules("memory", **variables))


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


def test_the_documentation_has_each_alert() -> None:
    """The index has each once, with its severity, and there is a page for each, to which it links, and no other."""
    index = (ROOT / "docs/alerts/index.md").read_text()
    found = re.findall(r"^- \[(\w+)\]\(\1\.md\) \((critical|warning)\): ", index, re.MULTILINE)
    assert sorted(found) == sorted(SEVERITIES.items())
    assert {path.stem for path in (ROOT / "docs/alerts").glob("NativeLink*.md")} == set(SEVERITIES)


def test_the_page_of_an_alert_has_the_rule_of_prod() -> None:
    tree = yaml.safe_load((ROOT / "clusters/prod/rendered/monitoring/alerts.yaml").read_text())
    for rule in (rule for group in tree["spec"]["groups"] for rule in group["rules"]):
        page = " ".join((ROOT / f"docs/alerts/{rule['alert']}.md").read_text().split())
        lasting = f"after {rule['for']}" if "for" in rule else "immediately"
        assert f"<summary><b>{rule['labels']['severity']}</b>, fires {lasting}" in page, rule["alert"]
        if rule["alert"] != "NativeLinkMetricsLost":  # its page has the sources of all clusters
            assert f"```promql {' '.join(rule['expr'].split())} ```" in page, rule["alert"]


def test_an_inhibition_hides_nothing_that_is_more_severe() -> None:
    """All names of inhibitions exist, and no warning silences a page."""
    for each in monitoring.DATA["inhibitions"]:
        assert {*each["sources"], *each["targets"]} <= set(SEVERITIES)
        if "warning" in {SEVERITIES[name] for name in each["sources"]}:
            assert {SEVERITIES[name] for name in each["targets"]} == {"warning"}, each

"""Each cluster has one fault. In one run of the real playbook it gets the line of its fault, and no other line.

The cases are in tests/preflight/reject/*.yml. Their lines are written by hand.
"""

import subprocess
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any

import jinja2
import pytest
from ansible_collections.nativelink.gitops.plugins.plugin_utils import specs, validation
from ansible_collections.nativelink.gitops.plugins.plugin_utils.findings import Finding
from ansible_collections.nativelink.gitops.plugins.plugin_utils.validation import formats, shared_clusters, types

from testkit.inventories import kubeconfig, minimal, write_inventory
from testkit.playbooks import Run, run_playbook
from testkit.servers import server
from tests.preflight.cases import CASES, Case

RULES = validation.RULES
RENDERING = [f"{specs.__package__}.{name}" for name in ("render", "context")]


def cases(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the variables of each case's cluster."""
    found = {}
    for case in CASES:
        variables = {**minimal(case.name, folder / "clusters"), **case.variables}
        found[case.name] = {key: value for key, value in variables.items() if key not in case.unset}
    return found


@pytest.fixture(scope="module")
def reject_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("reject")
    run = run_playbook("validate", write_inventory(folder, cases(folder)))
    assert not (folder / "clusters").exists()
    return run


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.place}-{case.name}")
def test_each_fault_has_its_line_and_no_other(case: Case, reject_run: Run) -> None:
    assert [line for line in reject_run.findings if line.startswith(f"{case.name}: ")] == [case.line]


@cache
def values_without_ansible() -> dict[str, dict[str, Any]]:
    """Return the values of the cases' clusters, with Jinja itself in place of Ansible's templar."""
    jinja = jinja2.Environment(undefined=jinja2.StrictUndefined)
    clusters = {}
    for name, variables in cases(Path("/nowhere")).items():
        known = {**specs.defaults(), **variables, "inventory_hostname": name, "playbook_dir": "/nowhere"}
        for role in ("ingress", "gitops"):
            facts = f"__{role}_provider_{str(known[f'{role}_provider']).replace('-', '_')}"
            known[f"__{role}_facts"] = specs.written().get(facts, specs.written()[f"__{role}_provider_none"])
        template = partial(lambda text, known: jinja.from_string(text).render(known), known=known)
        clusters[name] = {**dict.fromkeys(variables), **specs.effective(known, template)}
    return clusters


def lines_without_ansible() -> set[str]:
    return {str(fault) for fault in validation.static_findings(values_without_ansible())}


def test_the_cases_say_the_same_without_ansible() -> None:
    assert lines_without_ansible() == {case.line for case in CASES if not case.rendered}


def test_what_validates_does_not_import_what_renders() -> None:
    package = validation.__name__
    code = f"import sys, {package}; sys.exit(any(name in sys.modules for name in {RENDERING}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert subprocess.run([sys.executable, "-c", code.replace(package, RENDERING[0])], check=False).returncode == 1


# The counter-runs: without a rule, or a format, at least one case has no line.


def checked(case: Case) -> tuple[types.CheckedValues, set[str]]:
    """Return the valid values of a case's cluster, and the lines about the others."""
    values, findings = types.checked({**values_without_ansible()[case.name], "cluster": case.name})
    return values, {str(Finding(case.name, *each)) for each in findings}


@cache
def sayers() -> list[list[object]]:
    """Return what says each case's line: rules, and None for what checks each variable alone."""
    found = []
    for case in CASES:
        values, lines = checked(case)
        said = {rule: {str(Finding(case.name, *each)) for each in types.apply_rule(rule, values)} for rule in RULES}
        found.append([rule for rule, said_by_it in {None: lines, **said}.items() if case.line in said_by_it])
    return found


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_no_rule_is_without_a_case(rule: object) -> None:
    assert [rule] in sayers()


@pytest.mark.parametrize("index", range(len(formats.FORMATS)), ids=[glob for glob, _ in formats.FORMATS])
def test_no_format_is_without_a_case(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # The cases that name the variable come first: most of the time the first one is enough.
    name = formats.FORMATS[index][0].strip("*.[]")
    alone = [case for case, said in zip(CASES, sayers(), strict=True) if said == [None]]
    alone.sort(key=lambda case: name not in case.line)
    monkeypatch.setattr(formats, "FORMATS", formats.FORMATS[:index] + formats.FORMATS[index + 1 :])
    formats.checks.cache_clear()
    try:
        assert not all(case.line in checked(case)[1] for case in alone)
    finally:
        formats.checks.cache_clear()


def test_two_hosts_on_one_api_server_are_found_by_its_address(tmp_path: Path) -> None:
    addresses = ["https://API.example.com", "https://api.example.com:443/", "https://api.example.com:6443"]
    clusters = {
        f"c{number}": {
            "cluster_kubeconfig": str(kubeconfig(tmp_path / f"{number}", address)),
            "cluster_context": "good",
            "nativelink_namespace": "nativelink",
            "nativelink_workers_namespace": f"workers-{number}",
            "node_agent_namespace": "nativelink-node-agent",
            "node_agent_guard": True,
        }
        for number, address in enumerate(addresses)
    }

    def faults() -> list[str]:
        return [str(fault).replace("https://api.example.com:443", "API") for fault in shared_clusters(clusters)]

    pairs = (("c0", "c1"), ("c1", "c0"))
    assert faults() == [
        f"{name}: nativelink_namespace: the cluster {other} also uses nativelink on API; "
        "give one of them other namespaces or another API server"
        for name, other in pairs
    ]
    clusters["c0"]["nativelink_namespace"] = "another"
    assert faults() == [
        f"{name}: node_agent_namespace: the cluster {other} also uses nativelink-node-agent on API; "
        "set node_agent_guard and node_agent_low_latency to false in one of them, because one agent serves all"
        for name, other in pairs
    ]
    clusters["c1"]["node_agent_guard"] = False
    assert faults() == []


def test_all_faults_come_at_once_and_sorted(reject_run: Run) -> None:
    assert reject_run.status == 2
    lines = reject_run.findings
    assert len(lines) == len(CASES)
    assert lines == sorted(lines, key=lambda line: line.split(": ")[:2])
    assert "PLAY [Check that the clusters answer]" not in reject_run.output


@pytest.mark.parametrize("name", ["render", "bootstrap"])
def test_one_bad_cluster_stops_all_before_anything_is_written_or_applied(name: str, tmp_path: Path) -> None:
    callers: list[object] = []  # of an API server that never answers
    good = {**minimal("good", tmp_path / "clusters"), "preflight_api_timeout": 2}
    bad = {**minimal("bad", tmp_path / "clusters"), "nativelink_cas_replicas": 0}
    with server(callers.append) as port:
        good["cluster_kubeconfig"] = str(kubeconfig(tmp_path / "kubeconfig", f"https://127.0.0.1:{port}"))
        run = run_playbook(name, write_inventory(tmp_path, {"good": good, "bad": bad}))

        assert run.status == 2
        assert run.findings == ["bad: nativelink_cas_replicas: must be at least 1, not 0; write 1 or more"]
        assert "The inventory has faults; nothing was written or applied:" in run.output.partition("\nCLUSTERS ")[2]
        assert not (tmp_path / "clusters").exists()
        assert callers == []

        # The counter-run: without the bad cluster, the same playbook writes files, or asks the API server.
        run = run_playbook(name, write_inventory(tmp_path, {"good": good}))

    assert run.findings == []
    if name == "render":
        assert run.status == 0
        assert (tmp_path / "clusters/good/rendered/kustomization.yaml").is_file()
    else:
        assert callers != []

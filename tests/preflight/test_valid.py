"""A valid cluster has no fault, and the notices of notices.yml. A cluster is not blamed for the error of another."""

from dataclasses import replace
from typing import Any

import pytest
import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils import specs, validation, versions
from ansible_collections.nativelink.gitops.plugins.plugin_utils.objects import object_findings
from ansible_collections.nativelink.gitops.plugins.plugin_utils.validation import formats
from hypothesis import given, settings
from hypothesis import strategies as st

from testkit.inventories import LABELS, inventories
from testkit.trees import values_of
from tests.preflight.cases import FOLDER
from tests.preflight.cases import variables as variables_of

CASES: list[dict[str, Any]] = yaml.safe_load((FOLDER / "notices.yml").read_text())


def valued(name: str, variables: dict[str, Any]) -> dict[str, Any]:
    connection = {"cluster_kubeconfig": f"/nowhere/{name}", "cluster_context": name}
    stated = {"gitops_path": f"clusters/{name}", "nativelink_cas_storage_class": "gp3", **connection, **variables}
    return dict.fromkeys(stated) | values_of(name, **stated)


def faults(**clusters: dict[str, Any]) -> list[str]:
    found = {name: valued(name, variables) for name, variables in clusters.items()}
    return [str(fault) for fault in validation.static_findings(found)]


@settings(max_examples=40)
@given(
    st.dictionaries(LABELS, inventories(), min_size=2, max_size=3),
    st.sampled_from(sorted(specs.options())),
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8), st.lists(st.integers(), max_size=2)),
)
def test_a_wrong_value_never_breaks_the_check_nor_blames_another_cluster(
    clusters: dict[str, dict[str, Any]], name: str, value: object
) -> None:
    first = min(clusters)
    for cluster, variables in clusters.items():
        if "nativelink_redis_address" in variables:
            variables["nativelink_redis_address"] = f"{cluster}.example.com:6379"  # no two share a queue
    values = {cluster: valued(cluster, variables) for cluster, variables in clusters.items()}
    assert validation.static_findings(values) == []
    assert [fault for each in values.values() for fault in object_findings(each)] == []
    values[first][name] = value
    for fault in validation.static_findings(values):
        assert fault.cluster == first
        assert fault.problem
        assert fault.remedy
        assert "\n" not in str(fault)


def notices(**variables: Any) -> list[str]:
    """Return the notices of a valid cluster that asks clients for certificates and has these variables."""
    edge = {"nativelink_edge_tls_secret": "edge-tls", "nativelink_edge_client_ca_secret": "clients-ca"}
    assert faults(prod=edge | variables) == []
    return validation.notices(valued("prod", edge | variables))


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["set"]))
def test_a_valid_cluster_has_these_notices_and_no_others(case: dict[str, Any]) -> None:
    assert notices(**variables_of(case["set"])) == case.get("notices", [])


def test_low_latency_with_a_nativelink_that_sets_tcp_nodelay_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    version = specs.defaults()["nativelink_version"]
    newer = replace(versions.VERSIONS[version], tcp_nodelay=True)
    monkeypatch.setitem(versions.VERSIONS, version, newer)
    assert notices(node_agent_low_latency=True) == [
        f"node_agent_low_latency: is no longer needed with NativeLink {version}, which sets TCP_NODELAY itself; "
        "remove it; the next run takes it off the nodes"
    ]
    assert notices() == []


def test_a_cluster_may_share_its_path_with_another_branch() -> None:
    repository = {"gitops_repository": "https://git.example.com/a.git", "gitops_path": "tree"}
    one = {"gitops_provider": "argocd", "gitops_namespace": "argocd", **repository, "gitops_revision": "one"}
    assert len(faults(a=one, b=one)) == 2
    assert faults(a=one, b=one | {"gitops_revision": "two"}) == []


BRANCHES = ["main", "HEAD", "feature/x-1", "release-1.2", "ünïcode", "@x"]
REFUSED = ["", "@", "-x", "/x", "x/", "a//b", ".a", "a/.b", "a.lock", "a.", "a b", "a~1", "a@{1}"]  # by Git, too


@pytest.mark.parametrize("branch", BRANCHES + REFUSED)
def test_a_branch_may_have_any_name_that_git_accepts(branch: str) -> None:
    assert len(list(formats._branch(branch))) == (branch in REFUSED)

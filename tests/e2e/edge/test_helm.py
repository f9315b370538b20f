"""The Helm chart on a real node: Helm installs it, and a rendered tree changes to it and back.

The tests run in the order of the file. The bootstrap has prepared the cluster. Flux and Argo CD install the chart in
tests/e2e/engines.
"""

import json
from typing import Any

import pytest
import yaml

from testbed.cluster import Cluster
from testbed.waiting import patient, until
from testkit.bazel import Bazel
from testkit.edge import CAS, GATEWAY, HOST, NAME, PROXIES, Edge, made_known
from testkit.farm import fingerprint, load_images
from testkit.release import RESOURCES, SMALL, Release
from testkit.site import pool

Object = dict[str, Any]

WORKERS = "nativelink-workers"
# Installs the chart where the tree is. The conflicts are with the field manager that applied the tree.
TAKE_OVER = ("install", "--take-ownership", "--force-conflicts")
RULES = 4  # as many as one worker has slots, so that KEDA adds no worker
HITS = {"remote cache hit": RULES}
VALUES = {
    **SMALL,
    "hostname": HOST,
    "edge": {"tlsSecret": "edge-tls", "clientCaSecret": "", "open": "Bazel has no certificate"},
}
# The variables of an inventory that say the same as these values and values-dev.yaml.
TREE = {
    "keda_install": "release",
    "nativelink_scaling": "keda",
    "nativelink_priority_classes": True,
    "nativelink_cas_replicas": 1,
    "nativelink_cas_resources": RESOURCES,
    "nativelink_scheduler_resources": RESOURCES,
    "nativelink_worker_image": "docker.io/library/buildpack-deps:bookworm",
    "nativelink_worker_pools": [pool("default", slots=4)],
    "nativelink_edge_client_ca_secret": "",
    "nativelink_edge_access": [],
    "nativelink_edge_token_issuers": [],
    "nativelink_edge_open": "Bazel has no certificate",
}


@pytest.fixture(scope="module", autouse=True)
def tree(edge: Edge) -> None:
    """Bring the cluster, on which other tests may have run, and its tree to what the values say."""
    load_images(edge.where, "buildpack-deps", "collector", "keda")
    edge.site.set(NAME, **TREE)
    edge.site.playbook("bootstrap")
    edge.apply_folder()
    edge.where.run("-n", CAS, "delete", "securitypolicies", "--all")  # as an engine prunes them, and the other pool
    edge.where.run("-n", WORKERS, "delete", "deployment/nativelink-worker-large", "--ignore-not-found")
    edge.ready()
    leaving = ("-n", WORKERS, "get", "pods", "-o", "jsonpath={.items[*].metadata.deletionTimestamp}")
    until("earlier workers to be gone", lambda: edge.where.run(*leaving) == "", 60)


@pytest.fixture(scope="module")
def release(edge: Edge, tmp_path_factory: pytest.TempPathFactory) -> Release:
    return Release(edge.where, NAME, CAS, VALUES, tmp_path_factory.mktemp("helm"))


def identities(where: Cluster) -> dict[str, str]:
    """Return the UIDs of what may not be replaced: the CAS, its volumes and all pods."""
    found = fingerprint(where, CAS, WORKERS, kinds="statefulsets,pods,persistentvolumeclaims")
    return {name: value.split()[0] for name, value in found.items()}


def managed_by(where: Cluster) -> str:
    """Return who manages the CAS, as its label says."""
    label = r"jsonpath={.metadata.labels.app\.kubernetes\.io/managed-by}"
    return where.run("-n", CAS, "get", "statefulset", "nativelink-cas", "-o", label)


def limit(where: Cluster) -> str:
    """Return the memory limit of the running CAS."""
    path = "jsonpath={.spec.containers[0].resources.limits.memory}"
    return where.run("-n", CAS, "get", "pod", "nativelink-cas-0", "-o", path)


def hand_over(where: Cluster, release: Release) -> None:
    """Apply the names of the release's objects as the manager of the tree, who then owns no field of them."""
    names = []
    for item in yaml.safe_load_all(release.helm("get manifest")):
        metadata = {key: item["metadata"][key] for key in ("name", "namespace")}
        names.append({"apiVersion": item["apiVersion"], "kind": item["kind"], "metadata": metadata})
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": names})
    where.run("apply", "--server-side", "--validate=false", "--field-manager=engine", "-f", "-", stdin=text)


def test_the_chart_takes_over_a_tree(edge: Edge, bazel: Bazel, release: Release) -> None:
    assert bazel.build("chart", RULES) == {"remote": RULES}
    before = identities(edge.where)
    assert managed_by(edge.where) == "nativelink-gitops"
    with pytest.raises(AssertionError, match="cannot be imported into the current release: invalid ownership metadata"):
        release.deploy("install")
    release.deploy(*TAKE_OVER)
    assert managed_by(edge.where) == "Helm"
    assert identities(edge.where) == before
    assert bazel.build("chart", RULES) == HITS

    # The manager of the tree still owns the fields beside Helm.
    change = ("upgrade", "--set=workerPools[0].maxReplicas=3")
    with pytest.raises(AssertionError, match='conflict with "engine"'):
        release.deploy(*change)
    hand_over(edge.where, release)
    release.deploy(*change)
    assert identities(edge.where) == before


def test_the_tree_takes_over_from_the_chart(edge: Edge, bazel: Bazel, release: Release) -> None:
    before = identities(edge.where)
    # Helm forgets the release, and its objects stay.
    edge.where.run("-n", CAS, "delete", "secret", "-l", f"owner=helm,name={release.name}")
    edge.apply_folder()
    with pytest.raises(AssertionError, match="release: not found"):
        release.helm("status")
    assert managed_by(edge.where) == "nativelink-gitops"
    assert identities(edge.where) == before
    assert bazel.build("chart", RULES) == HITS


def test_another_installation_finds_the_cache_that_an_uninstallation_leaves(
    edge: Edge, bazel: Bazel, release: Release
) -> None:
    release.deploy(*TAKE_OVER)
    left = {name: uid for name, uid in identities(edge.where).items() if name.startswith("PersistentVolumeClaim/")}
    release.helm("uninstall", "--wait", f"--timeout={patient(180):.0f}s")
    until("the pods to be gone", lambda: identities(edge.where) == left, 120, lambda: f": {identities(edge.where)}")
    services = ("-n", PROXIES, "get", "service", "-l", GATEWAY, "-o", "name")
    until("the edge to be gone", lambda: not edge.where.run(*services), 60)

    said = release.deploy("install")
    assert f"helm test {NAME} -n {CAS}" in said
    assert f"--remote_executor=grpcs://{HOST}" in said
    assert made_known(edge.where) == edge.gateway
    assert bazel.build("chart", RULES) == HITS
    assert bazel.build("more", RULES) == {"remote": RULES}
    assert left.items() <= identities(edge.where).items()


def test_an_upgrade_and_a_rollback_of_a_limit_keep_the_cache(edge: Edge, bazel: Bazel, release: Release) -> None:
    before = identities(edge.where)
    revision = json.loads(release.helm("status", "--output=json"))["version"]
    with pytest.raises(AssertionError, match=r"cas\.replicas: 1 shards of the running StatefulSet would become 2"):
        release.deploy("upgrade", "--set=cas.replicas=2")
    release.deploy("upgrade", "--set=cas.resources.limits.memory=300Mi")
    assert limit(edge.where) == "300Mi"
    assert bazel.build("chart", RULES) == HITS

    release.helm("rollback", str(revision), "--wait", f"--timeout={patient(180):.0f}s")
    assert limit(edge.where) == "256Mi"
    assert bazel.build("chart", RULES) == HITS
    after = identities(edge.where)
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} == {
        "Pod/nativelink-cas-0"
    }


def test_the_smoke_check_passes_and_leaves_nothing(edge: Edge, release: Release) -> None:
    before = fingerprint(edge.where, CAS, kinds="networkpolicies")
    said = release.helm("test", "--logs")
    for address in ("nativelink-cas:50051", "nativelink-scheduler:50052"):
        assert f"{address}: HTTP/2 200" in said
    assert fingerprint(edge.where, CAS, kinds="networkpolicies") == before
    assert "Pod/nativelink-smoke" not in identities(edge.where)


def test_counter_run_the_smoke_check_fails_without_a_scheduler(edge: Edge, release: Release) -> None:
    before = fingerprint(edge.where, CAS, kinds="networkpolicies")
    with (
        edge.without("deployment/nativelink-scheduler"),
        pytest.raises(AssertionError, match="nativelink-smoke failed") as failure,
    ):
        release.helm("test", "--logs")
    assert "Failed to connect to nativelink-scheduler port 50052" in str(failure.value)
    assert "nativelink-cas:50051: HTTP/2 200" in str(failure.value)
    assert fingerprint(edge.where, CAS, kinds="networkpolicies") == before

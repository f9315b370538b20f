"""The Helm chart on a real node: Helm, Argo CD and Flux install it, and a rendered tree changes to it and back.

The tests share one cluster and run in the order of the file. The bootstrap has prepared the cluster.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed import components, manifests, node
from testbed.cluster import Cluster
from testbed.waiting import patient, until
from testkit.bazel import Bazel
from testkit.chain import Entry, secure_namespace
from testkit.edge import CAS, GATEWAY, HOST, NAME, PROXIES, Edge, made_known, opened
from testkit.git_server import BRANCH, GitServer, address_for
from testkit.release import BASE, CHART, RESOURCES, SMALL, Release
from testkit.site import Site, pool

Object = dict[str, Any]

WORKERS = "nativelink-workers"
RULES = 6
HITS = {"remote cache hit": RULES}
VALUES = {**SMALL, "hostname": HOST, "edge": {"tlsSecret": "edge-tls", "clientCaSecret": ""}}
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
}


@pytest.fixture(scope="module")
def edge(state: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """Bootstrap a cluster, and apply the rendered tree."""

    def load(where: Cluster) -> None:
        wanted = ("argocd", "buildpack-deps", "collector", "flux-helm", "keda")
        where.load(*(image for name in wanted for image in components.images_of(name)))

    with opened("e2e-helm", tmp_path_factory.mktemp("edge"), load, **TREE) as made:
        yield made


@pytest.fixture(scope="module")
def bazel(state: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bazel]:
    """Return a Bazel whose server starts while the cluster does."""
    made = Bazel(tmp_path_factory.mktemp("bazel"))
    with ThreadPoolExecutor(1) as background:
        background.submit(made.run, "info", "release")
        try:
            yield made
        finally:
            made.run("shutdown")


@pytest.fixture(scope="module")
def client(bazel: Bazel, edge: Edge) -> Bazel:
    """Return a Bazel that builds through the edge."""
    bazel.endpoints = [
        f"--remote_executor=grpcs://{edge.address}:443",
        f"--tls_certificate={edge.folder / 'servers.crt'}",
        f"--tls_authority_override={HOST}",  # the name is not in the DNS
    ]
    return bazel


@pytest.fixture(scope="module")
def release(edge: Edge, tmp_path_factory: pytest.TempPathFactory) -> Release:
    return Release(edge.where, NAME, CAS, VALUES, tmp_path_factory.mktemp("helm"))


def identities(where: Cluster) -> dict[str, str]:
    """Return the UIDs of what may not be replaced: the CAS, its volumes and all pods."""
    found: dict[str, str] = {}
    for namespace in (CAS, WORKERS):
        text = where.run("-n", namespace, "get", "statefulsets,pods,persistentvolumeclaims", "-o", "json")
        for each in json.loads(text)["items"]:
            found[f"{each['kind']}/{each['metadata']['name']}"] = each["metadata"]["uid"]
    return found


def managed_by(where: Cluster) -> str:
    """Return who manages the CAS, as its label says."""
    label = r"jsonpath={.metadata.labels.app\.kubernetes\.io/managed-by}"
    return where.run("-n", CAS, "get", "statefulset", "nativelink-cas", "-o", label)


def limit(where: Cluster) -> str:
    """Return the memory limit of the running CAS."""
    path = "jsonpath={.spec.containers[0].resources.limits.memory}"
    return where.run("-n", CAS, "get", "pod", "nativelink-cas-0", "-o", path)


def take_over(release: Release) -> None:
    """Install the chart where the tree is. The conflicts are with the field manager that applied the tree."""
    release.deploy("install", "--take-ownership", "--force-conflicts")


def hand_over(where: Cluster, release: Release) -> None:
    """Apply the names of the release's objects as the manager of the tree, who then owns no field of them."""
    names = []
    for item in yaml.safe_load_all(release.helm("get manifest")):
        metadata = {key: item["metadata"][key] for key in ("name", "namespace")}
        names.append({"apiVersion": item["apiVersion"], "kind": item["kind"], "metadata": metadata})
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": names})
    where.run("apply", "--server-side", "--validate=false", "--field-manager=engine", "-f", "-", stdin=text)


def test_the_chart_takes_over_a_tree(edge: Edge, client: Bazel, release: Release) -> None:
    assert client.build("first", RULES) == {"remote": RULES}
    before = identities(edge.where)
    assert managed_by(edge.where) == "nativelink-gitops"
    with pytest.raises(AssertionError, match="cannot be imported into the current release: invalid ownership metadata"):
        release.deploy("install")
    take_over(release)
    assert managed_by(edge.where) == "Helm"
    assert identities(edge.where) == before
    assert client.build("first", RULES) == HITS

    # The manager of the tree still owns the fields beside Helm.
    change = ("upgrade", "--set=workerPools[0].maxReplicas=3")
    with pytest.raises(AssertionError, match='conflict with "engine"'):
        release.deploy(*change)
    hand_over(edge.where, release)
    release.deploy(*change)
    assert identities(edge.where) == before


def test_the_tree_takes_over_from_the_chart(edge: Edge, client: Bazel, release: Release) -> None:
    before = identities(edge.where)
    # Helm forgets the release, and its objects stay.
    edge.where.run("-n", CAS, "delete", "secret", "-l", f"owner=helm,name={release.name}")
    edge.apply()
    with pytest.raises(AssertionError, match="release: not found"):
        release.helm("status")
    assert managed_by(edge.where) == "nativelink-gitops"
    assert identities(edge.where) == before
    assert client.build("first", RULES) == HITS


def test_another_installation_finds_the_cache_that_an_uninstallation_leaves(
    edge: Edge, client: Bazel, release: Release
) -> None:
    take_over(release)
    volume = identities(edge.where)["PersistentVolumeClaim/data-nativelink-cas-0"]
    release.helm("uninstall", "--wait", f"--timeout={patient(180):.0f}s")
    left = {"PersistentVolumeClaim/data-nativelink-cas-0": volume}
    until("the pods to be gone", lambda: identities(edge.where) == left, 120, lambda: f": {identities(edge.where)}")
    services = ("-n", PROXIES, "get", "service", "-l", GATEWAY, "-o", "name")
    until("the edge to be gone", lambda: not edge.where.run(*services), 60)

    said = release.deploy("install")
    assert f"helm test {NAME} -n {CAS}" in said
    assert f"--remote_executor=grpcs://{HOST}" in said
    assert made_known(edge.where) == edge.address
    assert client.build("first", RULES) == HITS
    assert client.build("second", RULES) == {"remote": RULES}
    assert identities(edge.where)["PersistentVolumeClaim/data-nativelink-cas-0"] == volume


def test_an_upgrade_and_a_rollback_of_a_limit_keep_the_cache(edge: Edge, client: Bazel, release: Release) -> None:
    before = identities(edge.where)
    revision = json.loads(release.helm("status", "--output=json"))["version"]
    with pytest.raises(AssertionError, match=r"cas\.replicas: 1 shards of the running StatefulSet would become 2"):
        release.deploy("upgrade", "--set=cas.replicas=2")
    release.deploy("upgrade", "--set=cas.resources.limits.memory=300Mi")
    assert limit(edge.where) == "300Mi"
    assert client.build("first", RULES) == HITS

    release.helm("rollback", str(revision), "--wait", f"--timeout={patient(180):.0f}s")
    assert limit(edge.where) == "256Mi"
    assert client.build("first", RULES) == HITS
    after = identities(edge.where)
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} == {
        "Pod/nativelink-cas-0"
    }


def test_the_smoke_check_passes_and_leaves_nothing(edge: Edge, release: Release) -> None:
    before = policies(edge.where)
    said = release.helm("test", "--logs")
    for address in ("nativelink-cas:50051", "nativelink-scheduler:50052"):
        assert f"{address}: HTTP/2 200" in said
    assert policies(edge.where) == before
    assert "Pod/nativelink-smoke" not in identities(edge.where)


def test_counter_run_the_smoke_check_fails_without_a_scheduler(edge: Edge, release: Release) -> None:
    before = policies(edge.where)
    with edge.without("scheduler"), pytest.raises(AssertionError, match="nativelink-smoke failed") as failure:
        release.helm("test", "--logs")
    assert "Failed to connect to nativelink-scheduler port 50052" in str(failure.value)
    assert "nativelink-cas:50051: HTTP/2 200" in str(failure.value)
    assert policies(edge.where) == before


def policies(where: Cluster) -> set[str]:
    """Return the NetworkPolicies beside the CAS."""
    return set(where.run("-n", CAS, "get", "networkpolicies", "-o", "name").split())


def prepared(where: Cluster, name: str, folder: Path) -> tuple[Entry, Object]:
    """Make the namespaces of another farm, without an edge. Return the farm and its values."""
    farm = Entry(where, name, folder)
    where.apply(secure_namespace(name, "restricted"), secure_namespace(farm.workers, "baseline"))
    network = node.network(where.home)
    assert network
    values = {
        **SMALL,
        "workersNamespace": farm.workers,
        "hostname": "",
        "edge": {"kind": "none", "tlsSecret": "", "clientCaSecret": ""},
        "clientPeers": [{"ipBlock": {"cidr": f"{network.machine}/32"}}],
    }
    return farm, values


def check_that_it_builds(farm: Entry, bazel: Bazel) -> None:
    bazel.endpoints = [
        f"--remote_executor=grpc://{farm.address('nativelink-scheduler')}:50052",
        f"--remote_cache=grpc://{farm.address('nativelink-cas')}:50051",
    ]
    assert bazel.build("first", RULES) == {"remote": RULES}
    assert bazel.build("first", RULES) == HITS


@pytest.fixture(scope="module")
def server(edge: Edge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    """Serve a repository with the chart."""
    folder = tmp_path_factory.mktemp("git")
    with GitServer(folder / "server", address_for(edge.where)) as made:
        site = Site.make(folder / "checkout")
        shutil.copytree(CHART, site.folder / "charts" / "nativelink")
        site.publish(made)
        yield made


def test_flux_installs_the_chart(edge: Edge, bazel: Bazel, server: GitServer, tmp_path: Path) -> None:
    where, name = edge.where, "by-flux"
    farm, values = prepared(where, name, tmp_path)
    where.run("apply", "--server-side", "-f", str(manifests.path("flux-helm")))
    where.rolled_out("flux-system", "deployment/source-controller", "deployment/helm-controller")
    source = {"kind": "GitRepository", "name": "charts"}
    # Unlike Helm, Flux reads the chart's own values only where they are named.
    files = [f"charts/nativelink/{file}" for file in ("values.yaml", BASE)]
    chart = {"chart": "charts/nativelink", "sourceRef": source, "valuesFiles": files}
    where.apply(
        {
            "apiVersion": "source.toolkit.fluxcd.io/v1",
            "kind": "GitRepository",
            "metadata": {"name": source["name"], "namespace": "flux-system"},
            "spec": {"url": server.http_url, "ref": {"branch": BRANCH}, "interval": "1m"},
        },
        {
            "apiVersion": "helm.toolkit.fluxcd.io/v2",
            "kind": "HelmRelease",
            "metadata": {"name": name, "namespace": "flux-system"},
            "spec": {
                "releaseName": name,
                "targetNamespace": name,
                "interval": "1m",
                "chart": {"spec": chart},
                "values": values,
                "test": {"enable": True},
            },
        },
    )
    look = ("-n", "flux-system", "get", "helmreleases,helmcharts,gitrepositories", "-o")

    def installed() -> bool:
        found = json.loads(where.run(*look[:2], "get", "helmrelease", name, "-o", "json")).get("status", {})
        states = {each["type"]: each["status"] for each in found.get("conditions", ())}
        return states.get("Ready") == states.get("TestSuccess") == "True"

    until("Flux to have installed the chart", installed, 240, lambda: where.run(*look, "jsonpath={.items[*].status}"))
    check_that_it_builds(farm, bazel)

    release = ("-n", "flux-system", "helmrelease", name)
    where.run("patch", *release, "--type=merge", "-p", '{"spec": {"values": {"cas": {"replicas": 2}}}}')
    path = 'jsonpath={.status.conditions[?(@.type=="Ready")].message}'
    refused = "cas.replicas: 1 shards of the running StatefulSet would become 2"
    until("Flux to refuse more shards", lambda: refused in where.run("get", *release, "-o", path), 60)


def test_argo_cd_installs_the_chart(edge: Edge, bazel: Bazel, server: GitServer, tmp_path: Path) -> None:
    where, name = edge.where, "by-argocd"
    farm, values = prepared(where, name, tmp_path)
    where.run("create", "namespace", "argocd")
    where.run("apply", "--server-side", "-n", "argocd", "-f", str(manifests.path("argocd")))
    # An Application that comes before the repo-server waits for the next poll.
    where.rolled_out("argocd", "deployment/argocd-repo-server", "statefulset/argocd-application-controller")
    where.apply(
        {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "AppProject",
            "metadata": {"name": "charts", "namespace": "argocd"},
            "spec": {"sourceRepos": ["*"], "destinations": [{"server": "*", "namespace": f"{name}*"}]},
        },
        {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Application",
            "metadata": {"name": name, "namespace": "argocd"},
            "spec": {
                "project": "charts",
                "source": {
                    "repoURL": server.http_url,
                    "targetRevision": BRANCH,
                    "path": "charts/nativelink",
                    "helm": {"releaseName": name, "valueFiles": [BASE], "valuesObject": values},
                },
                "destination": {"server": "https://kubernetes.default.svc", "namespace": name},
                "syncPolicy": {"automated": {}, "syncOptions": ["ServerSideApply=true"]},
            },
        },
    )
    path = "jsonpath={.status.sync.status} {.status.health.status}"
    look = ("-n", "argocd", "get", "application", name, "-o")
    until(
        "Argo CD to have installed the chart",
        lambda: where.run(*look, path) == "Synced Healthy",
        240,
        lambda: where.run(*look, "jsonpath={.status}"),
    )
    check_that_it_builds(farm, bazel)

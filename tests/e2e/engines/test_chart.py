"""The Helm chart on a real node, installed by Flux and by Argo CD, on clusters that they already run on."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed import manifests
from testbed.waiting import until
from testkit.engines import Engine
from testkit.farm import Farm, secure_namespace
from testkit.git_server import BRANCH, GitServer, address_for
from testkit.release import BASE, CHART, SMALL
from testkit.site import Site
from testkit.trees import resource

Object = dict[str, Any]


@pytest.fixture(scope="module")
def charts(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    """Serve a repository with the chart."""
    folder = tmp_path_factory.mktemp("git")
    with GitServer(folder / "server", address_for(engine.where)) as made:
        site = Site.make(folder / "checkout")
        shutil.copytree(CHART, site.folder / "charts" / "nativelink")
        site.publish(made)
        yield made


@pytest.fixture
def farm(engine: Engine, tmp_path: Path) -> Farm:
    """Make the namespaces of a release."""
    made = Farm(engine.where, "release", tmp_path)
    engine.where.apply(secure_namespace(made.name, "restricted"), secure_namespace(made.workers, "baseline"))
    return made


def values(farm: Farm) -> Object:
    """Return the values of a release that needs nothing else on the cluster, and that this machine reaches."""
    return {
        **SMALL,
        "workersNamespace": farm.workers,
        "scaling": "none",
        "priorityClasses": False,
        "hostname": "",
        "edge": {"kind": "none", "tlsSecret": "", "clientCaSecret": ""},
        "clientPeers": [{"ipBlock": {"cidr": f"{address_for(farm.where)}/32"}}],
    }


def check_that_it_runs_actions(farm: Farm) -> None:
    report = farm.client().report("--actions=4", "--seconds=0-1", pool="default")
    assert [each["outcome"] for each in report["actions"]] == ["ok"] * 4


@pytest.mark.parametrize("engine", ["flux"], indirect=True, scope="package")
def test_flux_installs_the_chart(engine: Engine, charts: GitServer, farm: Farm) -> None:
    where, name = engine.where, farm.name
    # The bootstrap's Flux has objects of the same names.
    where.run("apply", "--server-side", "--force-conflicts", "-f", str(manifests.path("flux-helm")))
    where.rolled_out("flux-system", "deployment/source-controller", "deployment/helm-controller")
    source = {"kind": "GitRepository", "name": "charts"}
    # Unlike Helm, Flux reads the chart's own values only where they are named.
    files = [f"charts/nativelink/{file}" for file in ("values.yaml", BASE)]
    chart = {"chart": "charts/nativelink", "sourceRef": source, "valuesFiles": files}
    git = {"url": charts.url, "ref": {"branch": BRANCH}, "interval": "1m"}
    helm = {"releaseName": name, "targetNamespace": name, "interval": "1m", "chart": {"spec": chart}}
    helm |= {"values": values(farm), "test": {"enable": True}}
    where.apply(
        resource("source.toolkit.fluxcd.io/v1/GitRepository", source["name"], "flux-system", spec=git),
        resource("helm.toolkit.fluxcd.io/v2/HelmRelease", name, "flux-system", spec=helm),
    )
    look = ("-n", "flux-system", "get", "helmreleases,helmcharts,gitrepositories", "-o")

    def installed() -> bool:
        found = json.loads(where.run(*look[:2], "get", "helmrelease", name, "-o", "json")).get("status", {})
        states = {each["type"]: each["status"] for each in found.get("conditions", ())}
        return states.get("Ready") == states.get("TestSuccess") == "True"

    until("Flux to have installed the chart", installed, 240, lambda: where.run(*look, "jsonpath={.items[*].status}"))
    check_that_it_runs_actions(farm)

    release = ("-n", "flux-system", "helmrelease", name)
    where.run("patch", *release, "--type=merge", "-p", '{"spec": {"values": {"cas": {"replicas": 2}}}}')
    path = 'jsonpath={.status.conditions[?(@.type=="Ready")].message}'
    refused = "cas.replicas: 1 shards of the running StatefulSet would become 2"
    until("Flux to refuse more shards", lambda: refused in where.run("get", *release, "-o", path), 60)


@pytest.mark.parametrize("engine", ["argocd"], indirect=True, scope="package")
def test_argo_cd_installs_the_chart(engine: Engine, charts: GitServer, farm: Farm) -> None:
    where, name = engine.where, farm.name
    project = {"sourceRepos": ["*"], "destinations": [{"server": "*", "namespace": f"{name}*"}]}
    helm = {"releaseName": name, "valueFiles": [BASE], "valuesObject": values(farm)}
    application = {
        "project": "charts",
        "source": {"repoURL": charts.url, "targetRevision": BRANCH, "path": "charts/nativelink", "helm": helm},
        "destination": {"server": "https://kubernetes.default.svc", "namespace": name},
        "syncPolicy": {"automated": {}, "syncOptions": ["ServerSideApply=true"]},
    }
    where.apply(
        resource("argoproj.io/v1alpha1/AppProject", "charts", "argocd", spec=project),
        resource("argoproj.io/v1alpha1/Application", name, "argocd", spec=application),
    )
    path = "jsonpath={.status.sync.status} {.status.health.status}"
    look = ("-n", "argocd", "get", "application", name, "-o")
    until(
        "Argo CD to have installed the chart",
        lambda: where.run(*look, path) == "Synced Healthy",
        240,
        lambda: where.run(*look, "jsonpath={.status}"),
    )
    check_that_it_runs_actions(farm)

"""A cluster changes from Flux to Argo CD and back, without an effect on its workloads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from testbed import cluster, components
from testbed.cluster import Cluster
from testbed.waiting import until
from testkit.git_server import GitServer, address_for
from testkit.site import SMALL, Site, pool

NAME = "prod"
POINTER = f"nativelink-{NAME}"
SPACES = ("nativelink", "nativelink-workers")
FLUX, ARGOCD = "kustomizations.kustomize.toolkit.fluxcd.io", "applications.argoproj.io"


@dataclass(frozen=True)
class Switch:
    """A cluster and the site whose tree it follows."""

    where: Cluster
    site: Site

    def applied(self, commit: str) -> None:
        """Wait until the engine that the inventory names has applied a commit and reports it as healthy."""
        if self.site.hosts[NAME]["gitops_provider"] == "flux":
            namespace, kind, path = "flux-system", FLUX, "{.status.lastAppliedRevision} {.status.conditions[0].status}"
            wanted = f"main@sha1:{commit} True"
        else:
            namespace, kind = "argocd", ARGOCD
            path = "{.status.sync.revision} {.status.sync.status} {.status.health.status}"
            wanted = f"{commit} Synced Healthy"
            refresh = "argocd.argoproj.io/refresh=normal"
            self.where.run("-n", namespace, "annotate", "--overwrite", kind, POINTER, refresh)
        look = ("-n", namespace, "get", kind, POINTER, "-o", f"jsonpath={path}")
        until(wanted, lambda: self.where.run(*look) == wanted, 120, lambda: f"\nit is {self.where.run(*look)}")

    def connect(self, provider: str) -> str:
        """Give the tree to an engine, and return the cluster's part of the summary."""
        self.site.set(NAME, gitops_provider=provider)
        return self.site.playbook("connect").summary[NAME]

    def running(self) -> dict[str, str]:
        """Return the UID and generation of each object, except that Deployments only have the UID.

        An annotation is enough to change the generation of a Deployment.
        """
        found: dict[str, str] = {}
        for namespace in SPACES:
            kinds = "statefulsets,deployments,pods,persistentvolumeclaims"
            for each in json.loads(self.where.run("-n", namespace, "get", kinds, "-o", "json"))["items"]:
                metadata = each["metadata"]
                generation = "" if each["kind"] == "Deployment" else metadata.get("generation", "")
                found[f"{each['kind']}/{metadata['name']}"] = f"{metadata['uid']} {generation}"
        return found

    def pointers(self) -> set[str]:
        """Return the objects that point an engine at the tree."""
        known = self.where.run("get", "crds", "-o", "name")
        kinds = [kind for kind in (FLUX, ARGOCD) if kind in known]
        return set(self.where.run("get", ",".join(kinds), "-A", "-o", "name").split())

    def requests(self, workload: str) -> dict[str, str]:
        """Return the requests of the first container of a workload."""
        spec = json.loads(self.where.run("-n", "nativelink", "get", workload, "-o", "json"))["spec"]
        return dict(spec["template"]["spec"]["containers"][0]["resources"].get("requests", {}))


@pytest.fixture(scope="module")
def switch(state: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Switch]:
    """Bootstrap a cluster with Flux, and wait until its tree is applied."""
    with cluster.fresh("e2e-switch", nodes=0, real=True) as where:
        where.load(*(image for name in ("flux", "argocd") for image in components.images_of(name)))
        folder = tmp_path_factory.mktemp("switch")
        with GitServer(folder / "git", address_for(where)) as server:
            site = Site.make(folder / "checkout")
            engine = {"gitops_provider": "flux", "gitops_repository": server.http_url, "gitops_interval": "5s"}
            site.add(NAME, where, **SMALL, nativelink_worker_pools=[pool("default")], **engine)
            site.bootstrap()
            switch = Switch(where, site)
            switch.applied(site.publish(server))
            yield switch


def test_from_flux_to_argocd_and_back(switch: Switch) -> None:
    before = switch.running()
    assert switch.pointers() == {f"{FLUX.replace('kustomizations', 'kustomization')}/{POINTER}"}

    said = switch.connect("argocd")
    assert "took the tree from flux" in said
    switch.applied(switch.site.commit("Argo CD from now on"))
    assert switch.pointers() == {f"application.argoproj.io/{POINTER}"}
    assert switch.where.run("-n", "nativelink", "get", "rolebindings", "-o", "name") == ""
    assert switch.running() == before

    said = switch.connect("flux")
    assert "took the tree from argocd" in said
    switch.applied(switch.site.commit("Flux again"))
    assert switch.pointers() == {f"{FLUX.replace('kustomizations', 'kustomization')}/{POINTER}"}
    assert switch.running() == before


@pytest.mark.parametrize("provider", ["argocd", "flux"])
def test_a_field_that_leaves_git_after_a_switch_leaves_the_cluster(switch: Switch, provider: str) -> None:
    """The new engine removes the field, unless the old engine still owns it."""
    old = {"argocd": "kustomize-controller", "flux": "argocd-controller"}[provider]
    both = {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "256Mi"}}
    one = {"requests": {"memory": "32Mi"}, "limits": {"memory": "256Mi"}}
    switch.site.set(NAME, nativelink_cas_resources=both, nativelink_scheduler_resources=both)
    switch.site.playbook("render")
    switch.site.commit("Both requests") if switch.site.git("status", "--porcelain") else None
    switch.applied(switch.site.git("rev-parse", "HEAD"))

    switch.connect(provider)
    # The counter-run: the old engine still owns the fields of this object.
    scheduler = yaml.safe_load((switch.site.tree_of(NAME) / "rendered/scheduler/deployment.yaml").read_text())
    kept = {key: scheduler[key] for key in ("apiVersion", "kind")}
    kept["metadata"] = {"name": scheduler["metadata"]["name"], "namespace": scheduler["metadata"]["namespace"]}
    container = {"name": scheduler["spec"]["template"]["spec"]["containers"][0]["name"], "resources": both}
    kept["spec"] = {"template": {"spec": {"containers": [container]}}}
    apply: Callable[..., str] = switch.where.run
    apply("apply", "--server-side", f"--field-manager={old}", "-f", "-", stdin=json.dumps(kept))

    switch.site.set(NAME, nativelink_cas_resources=one, nativelink_scheduler_resources=one)
    switch.site.playbook("render")
    switch.applied(switch.site.commit("No request of CPU"))
    assert switch.requests("statefulset/nativelink-cas") == {"memory": "32Mi"}
    assert switch.requests("deployment/nativelink-scheduler") == {"cpu": "10m", "memory": "32Mi"}
    switch.connect(provider)  # hands over the fields of the counter-run too


def test_a_dry_run_and_the_removal_of_the_engine_change_no_workload(switch: Switch) -> None:
    scheduler = "deployment/nativelink-scheduler"
    mended = {"memory": "32Mi"}  # the result of the last handover of the test above
    until("the request of CPU to go", lambda: switch.requests(scheduler) == mended, 60)
    switch.where.rolled_out("nativelink", scheduler)
    until("one scheduler", lambda: len([pod for pod in switch.running() if "Pod/nativelink-scheduler" in pod]) == 1, 30)
    before = switch.running()
    assert switch.site.playbook("bootstrap", "--check").changed == 0
    assert len(switch.pointers()) == 1
    switch.connect("none")
    assert switch.pointers() == set()
    assert switch.running() == before

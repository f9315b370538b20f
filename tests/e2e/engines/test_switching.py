"""A cluster changes from Flux to Argo CD and back, without an effect on its workloads."""

import json
from typing import Any

import pytest

from testbed.waiting import until
from testkit.engines import CAS, ENGINES, NAME, OBJECT, WORKERS, Engine
from testkit.farm import deployment, fingerprint

pytestmark = pytest.mark.parametrize("engine", ["flux"], indirect=True, scope="package")
BOTH = {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "250Mi"}}
ONE = {"requests": {"memory": "32Mi"}, "limits": {"memory": "250Mi"}}


def running(engine: Engine) -> dict[str, str]:
    """Return the UIDs, and generations except of Deployments, which an annotation is enough to change."""
    found = fingerprint(engine.where, CAS, WORKERS)
    return {name: each.split()[0] if name.startswith("Deployment") else each for name, each in found.items()}


def connect(engine: Engine, provider: str) -> str:
    """Give the tree to an engine, and return the cluster's part of the summary."""
    engine.site.set(NAME, gitops_provider=provider)
    return engine.site.playbook("connect", "--limit", NAME).summary[NAME]


def pointers(engine: Engine) -> set[str]:
    """Return the objects that point an engine at the tree."""
    known = engine.where.run("get", "crds", "-o", "name")
    kinds = ("kustomizations.kustomize.toolkit.fluxcd.io", "applications.argoproj.io")
    found = engine.where.run("get", ",".join(kind for kind in kinds if kind in known), "-A", "-o", "name").split()
    return {each for each in found if each.endswith(f"/{OBJECT}")}


def requests(engine: Engine, workload: str) -> dict[str, str]:
    """Return the requests of the first container of a workload."""
    container = engine.get(workload)["spec"]["template"]["spec"]["containers"][0]
    return dict(container["resources"].get("requests", {}))


def resources(engine: Engine, stated: dict[str, Any], message: str) -> str:
    """Render and push the resources of CAS and scheduler."""
    engine.site.set(NAME, nativelink_cas_resources=stated, nativelink_scheduler_resources=stated)
    engine.site.playbook("render", "--limit", NAME)
    return engine.site.commit(message)


@pytest.mark.parametrize(
    ("old", "new", "manager"),
    [("flux", "argocd", "kustomize-controller"), ("argocd", "flux", "argocd-controller")],
    ids=["there", "back"],
)
def test_a_switch_replaces_no_workload_and_a_field_that_leaves_git_leaves_the_cluster(
    engine: Engine, old: str, new: str, manager: str
) -> None:
    """The new engine removes the field, unless the old engine still owns it."""
    engines = {kind: made(engine.where, engine.site, engine.server) for kind, made in ENGINES.items()}
    engines[old].applied(resources(engine, BOTH, f"Both requests, by {old}"), 120)
    before = running(engine)
    assert pointers(engine) == {engines[old].pointer}

    assert f"took the tree from {old}" in connect(engine, new)
    engines[new].applied(engine.site.commit(f"From now on by {new}"), 120)
    assert pointers(engine) == {engines[new].pointer}
    assert (engine.names("rolebindings", CAS) == set()) is (new == "argocd")
    assert running(engine) == before

    # The counter-run: the old engine still owns the fields of this object.
    container = {"name": "nativelink", "resources": BOTH}
    kept = deployment("nativelink-scheduler", {"containers": [container]}, namespace=CAS)
    engine.where.run("apply", "--server-side", f"--field-manager={manager}", "-f", "-", stdin=json.dumps(kept))
    engines[new].applied(resources(engine, ONE, f"No request of CPU, by {new}"), 120)
    assert requests(engine, "statefulset/nativelink-cas") == {"memory": "32Mi"}
    assert requests(engine, "deployment/nativelink-scheduler") == {"cpu": "10m", "memory": "32Mi"}
    connect(engine, new)  # hands over the fields of the counter-run too
    if new == "flux":  # Argo CD removes it with the next commit
        mended = {"memory": "32Mi"}
        until("the request of CPU to go", lambda: requests(engine, "deployment/nativelink-scheduler") == mended, 60)


def test_a_dry_run_and_the_removal_of_the_engine_change_no_workload(engine: Engine) -> None:
    engine.where.rolled_out(CAS, "deployment/nativelink-scheduler")
    scheduler = "Pod/nativelink-scheduler"
    until("one scheduler", lambda: len([pod for pod in running(engine) if scheduler in pod]) == 1, 30)
    before = running(engine)
    assert engine.site.playbook("bootstrap", "--check", "--limit", NAME).changed == 0
    assert len(pointers(engine)) == 1
    connect(engine, "none")
    assert pointers(engine) == set()
    assert running(engine) == before

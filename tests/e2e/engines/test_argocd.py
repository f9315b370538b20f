"""What only Argo CD does, or does in its own way. See tests/e2e/engines/test_engines.py for the rest."""

import pytest

from testkit.engines import SYNC_TIMEOUT, WORKERS, ArgoCD
from tests.e2e.engines.conftest import configuration_of, replicas, workers

pytestmark = pytest.mark.parametrize("engine", ["argocd"], indirect=True, scope="package")
SCALED = "scaledobject/nativelink-worker-auto"


def paused(engine: ArgoCD) -> bool:
    """Return True if KEDA has paused the pool."""
    conditions = engine.get(SCALED, WORKERS)["status"]["conditions"]
    return any(each["type"] == "Paused" and each["status"] == "True" for each in conditions)


def annotate(engine: ArgoCD, key: str, value: str | None) -> None:
    """Annotate the ScaledObject, or remove the annotation."""
    engine.patch(SCALED, {"metadata": {"annotations": {f"autoscaling.keda.sh/{key}": value}}}, WORKERS)


def test_autoscaled_replicas_are_left_alone(engine: ArgoCD) -> None:
    """Argo CD does not reset the replicas that KEDA sets, and a paused ScaledObject is not a difference."""

    def pause(count: int) -> None:
        annotate(engine, "paused-replicas", str(count))
        engine.eventually(f"KEDA to have {count} workers", lambda: replicas(engine, "auto") == count, 30)

    before = replicas(engine, "auto")
    pause(before + 1)
    for _ in range(2):
        engine.ask()
        assert engine.status()["sync"]["status"] == "Synced"
        assert {each["status"] for each in engine.status()["resources"]} == {"Synced"}
        assert replicas(engine, "auto") == before + 1
    pause(before)  # otherwise the HPA removes the worker minutes later, during another test
    annotate(engine, "paused-replicas", None)
    engine.eventually("the pause to end", lambda: not paused(engine), 30)


@pytest.mark.parametrize("ours", [True, False], ids=["as it is", "with Argo CD's own script"])
def test_a_paused_pool_does_not_delay_a_sync(engine: ArgoCD, ours: bool) -> None:
    """A sync that prunes waits until all objects are healthy. Our health script calls a paused ScaledObject healthy."""
    script = "resource.customizations.health.keda.sh_ScaledObject"
    health = engine.get("configmap/argocd-cm", "argocd")["data"][script]
    if not ours:
        engine.patch("configmap/argocd-cm", {"data": {script: None}}, "argocd")
    annotate(engine, "paused", "true")
    engine.eventually("KEDA to see the pause", lambda: paused(engine), 30)
    before = engine.names("configmap", WORKERS)

    file = engine.file("rendered/worker/kept/worker.json5")
    file.write_text(file.read_text() + "// Another configuration.\n")
    commit = engine.site.commit("Another configuration")
    if ours:
        engine.applied(commit)
        assert len(engine.names("configmap", WORKERS)) == len(before), "the old ConfigMap should be pruned"
        assert engine.names("configmap", WORKERS) != before
    else:
        engine.ask()
        waiting = "waiting for healthy state of keda.sh/ScaledObject/nativelink-worker-auto"
        engine.eventually("the sync to wait", lambda: waiting in engine.told(), 60)
        assert engine.names("configmap", WORKERS) > before, "the old ConfigMap should not be pruned"

    engine.patch("configmap/argocd-cm", {"data": {script: health}}, "argocd")
    annotate(engine, "paused", None)
    engine.applied(engine.site.revert(), SYNC_TIMEOUT + 60)
    assert engine.names("configmap", WORKERS) == before


@pytest.mark.parametrize("prune_last", [True, False], ids=["as it is", "without PruneLast"])
def test_prune_last_keeps_the_old_configuration_while_a_rollout_hangs(engine: ArgoCD, prune_last: bool) -> None:
    """With PruneLast, an old ConfigMap stays until the new pods are ready. Without it, the ConfigMap is lost."""
    options = engine.get(engine.pointer, engine.namespace)["spec"]["syncPolicy"]["syncOptions"]
    kept = [option for option in options if prune_last or option != "PruneLast=true"]
    engine.patch(engine.pointer, {"spec": {"syncPolicy": {"syncOptions": kept}}}, engine.namespace)

    engine.eventually("one worker", lambda: len(workers(engine)) == 1, 60)
    ((old, pod),) = workers(engine).items()
    configuration = configuration_of(pod)
    file = engine.file("rendered/worker/kept/worker.json5")
    file.write_text(file.read_text() + "}")
    engine.site.commit("A configuration that no worker can read")
    engine.ask()
    engine.eventually("a new pod", lambda: len(workers(engine)) == 2, 30)
    if prune_last:
        waiting = "waiting for healthy state of apps/Deployment/nativelink-worker-kept"
        engine.eventually("the sync to wait", lambda: waiting in engine.told(), 30)
        assert configuration in engine.names("configmap", WORKERS)
    else:
        engine.eventually(
            "the ConfigMap to be lost", lambda: configuration not in engine.names("configmap", WORKERS), 30
        )
    conditions = {each["type"]: each["status"] for each in workers(engine)[old]["status"]["conditions"]}
    assert conditions["Ready"] == "True", "the old pod should keep working"

    engine.applied(engine.site.revert(), SYNC_TIMEOUT + 60)
    assert configuration in engine.names("configmap", WORKERS)
    engine.eventually("one worker", lambda: set(workers(engine)) == {old}, 60)
    engine.patch(engine.pointer, {"spec": {"syncPolicy": {"syncOptions": options}}}, engine.namespace)

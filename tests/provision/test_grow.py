"""The action copy_shards on a real API server, whose pods are fake: when it copies, and what it makes and removes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render
from ansible_collections.nativelink.gitops.plugins.plugin_utils.tree import write

from testbed.cluster import Cluster
from testbed.waiting import ClusterError, until
from testkit.farm import secure_namespace
from testkit.record import Record
from testkit.site import SMALL, pool
from testkit.trees import resource, values_of

from .conftest import CLUSTER, Live, Object, Play, step

COPY: Object = {"nativelink.gitops.copy_shards": {"timeout": 4}}
ONE: Object = {
    **SMALL,
    "nativelink_namespace": "grow",
    "nativelink_workers_namespace": "grow-workers",
    "nativelink_worker_pools": [pool("default")],
    "nativelink_cas_storage_class": "grow",
    "nativelink_cas_replicas": 2,
    "nativelink_cas_layout_from": 1,
    "nativelink_cas_shards": 1,
}
TWO: Object = {**ONE, "nativelink_cas_shards_next": 2}


def deploy(dev: Cluster, folder: Path, variables: Object) -> None:
    """Apply a tree as an engine does, and wait for its pods."""
    write(folder, render.tree(values_of(CLUSTER, **variables)))
    (folder / "kustomization.yaml").write_text("resources: [rendered]\n")
    dev.run("apply", "--server-side", "--force-conflicts", "-k", str(folder))
    dev.rolled_out("grow", "statefulset/nativelink-cas", "deployment/nativelink-scheduler")
    dev.rolled_out("grow-workers", "deployment/nativelink-worker-default")


@pytest.fixture(scope="module")
def folder(dev: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield the folder of a tree of one shard on two pods, which is applied."""
    made = tmp_path_factory.mktemp("grow")
    dev.offer_volumes("grow", "1Gi", 2)
    dev.apply(secure_namespace("grow", "restricted"), secure_namespace("grow-workers", "baseline"))
    deploy(dev, made, ONE)
    yield made
    dev.run("delete", "namespace", "grow", "grow-workers", "--wait=false")


def gone(live: Live) -> bool:
    """Return whether nothing is left of a copy."""
    found = [each for kind in ("job", "configmap", "networkpolicy") for each in live(kind, "", "grow").get("items", ())]
    return not [each for each in found if "copier" in each["metadata"]["name"]]


def test_it_copies_only_while_all_pods_write_to_both(dev: Cluster, folder: Path, play: Play, live: Live) -> None:
    idle, early = play.steps(step(COPY, **ONE), step(COPY, **TWO))
    assert (idle.message, idle.changed) == ("", [])
    assert idle.summary == {"next": ["nothing moves: nativelink_cas_shards_next is 0 (docs/grow.md)"]}
    assert early.message == (
        "dev: nativelink_cas_shards_next: the running CAS does not have it yet; "
        "render, push, and run this again after the rollout"
    )

    deploy(dev, folder, TWO)
    until("the old pods to be gone", lambda: len(live("pod", "", "grow")["items"]) == 3, 60)
    volume = {"name": "config", "configMap": {"name": "nativelink-worker-default-config-old"}}
    labels = {"app.kubernetes.io/part-of": "nativelink", "app.kubernetes.io/component": "worker"}
    spec = {"containers": [{"name": "worker", "image": "example.com/worker"}], "volumes": [volume]}
    dev.apply(resource("v1/Pod", "draining", "grow-workers", spec=spec, metadata={"labels": labels}))
    delete = {"ansible.builtin.command": " ".join(dev.command("-n", "grow-workers", "delete", "pod", "draining"))}
    with (
        Record(dev, "/apis/batch/v1/namespaces/grow/jobs") as jobs,
        Record(dev, "/apis/networking.k8s.io/v1/namespaces/grow/networkpolicies") as policies,
    ):
        draining, _, done = play.steps(step(COPY), step(delete), step(COPY), **TWO)
    assert draining.message == (
        "dev: nativelink_cas_shards_next: 1 pods have an older configuration: draining; "
        "run this again when they are replaced; workers end their actions first"
    )
    assert done.message == ""
    assert done.summary["provisioned"] == [f"nativelink-copier-{number}: " for number in range(2)]
    assert done.summary["next"] == [
        "remove nativelink_cas_shards; remove nativelink_cas_shards_next, allow cas_replicas, render and push"
    ]
    made = {each.object["metadata"]["name"] for each in jobs.changes}
    assert made == {f"nativelink-copier-{number}" for number in range(2)}
    made = {each.object["metadata"]["name"] for each in policies.changes}
    assert {"nativelink-copier", "nativelink-copier-into-cas"} <= made
    until("nothing to be left", lambda: gone(live), 30)

    dev.never_ready("grow")
    try:
        (late,) = play.steps(step(COPY), **TWO)
    finally:
        dev.never_ready("grow", on=False)
    assert late.message.endswith(" after 4 s; run this again, which goes on from there")
    until("nothing to be left", lambda: gone(live), 30)


def test_volumes_grow_under_running_pods(dev: Cluster, folder: Path, play: Play, live: Live) -> None:
    def pods() -> list[str]:
        return sorted(each["metadata"]["uid"] for each in live("pod", "", "grow")["items"])

    grow: Object = {"nativelink.gitops.grow_volumes": {}}
    expanding = {"provisioner": "example.com/any", "allowVolumeExpansion": True}
    before, larger = pods(), {**TWO, "nativelink_cas_volume_size": "2Gi"}
    with pytest.raises(ClusterError, match="updates to statefulset spec"):
        deploy(dev, folder, larger)
    (refused,) = play.steps(step(grow), **larger)
    assert refused.message.startswith("dev: nativelink_cas_volume_size: persistentvolumeclaims ")
    assert refused.message.endswith(
        "let the StorageClass expand volumes (allowVolumeExpansion), or start with new volumes (docs/changes.md)"
    )
    dev.apply(resource("storage.k8s.io/v1/StorageClass", "grow", **expanding))
    try:
        done, again = play.steps(step(grow), step(grow), **larger)
    finally:
        dev.run("delete", "storageclass", "grow")
    assert (done.message, again.message, again.changed) == ("", "", [])
    assert done.summary == {
        "provisioned": ["2 CAS volumes: grown to 2Gi"],
        "next": ["push what was rendered: until then the engine cannot apply the StatefulSet"],
    }
    sizes = [each["spec"]["resources"]["requests"] for each in live("pvc", "", "grow")["items"]]
    assert sizes == [{"storage": "2Gi"}] * 2
    assert pods() == before
    deploy(dev, folder, larger)

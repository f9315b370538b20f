"""The chart refuses what would break a running farm.

Preflight compares with the committed tree, and the chart with what runs. Here a release runs on a real API server, with
pods that are fake.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from testbed.cluster import Cluster
from tests.chart.conftest import CHART, Done, Helm

NAME, CAS = "staging", "statefulset/nativelink-cas"
# Three CAS of 50Gi, and Redis with 10Gi. Without KEDA and an edge the cluster needs no CRDs.
VALUES = ("--values", CHART / "values-staging.yaml", "--set=scaling=none,edge.kind=none,hostname=")
VALUES += ("--set=edge.tlsSecret=,edge.clientCaSecret=,priorityClasses=false,workersNamespace=chart-workers",)
FOUR = "--set=cas.replicas=4"
ANEW = "delete the StatefulSet and its PersistentVolumeClaims, and upgrade (commands: docs/helm.md)"
CACHE, QUEUE = "accept a cache flush", "accept that the queue is lost and its builds start again"
REPLICAS = (
    "cas.replicas: 3 shards of the running StatefulSet would become 4, which moves the keys: cached results are lost, "
    "and the scheduler and all workers, which address the shards, are replaced; accept a cache flush: add cas_replicas "
    "to allowChanges for that time"
)
BUCKET = "--set=cas.store=object_store,objectStore.bucket=builds,objectStore.region=eu"
CHANGES = {
    FOUR: REPLICAS,
    BUCKET: "cas.store: volumes of the running StatefulSet would become object_store, which is still empty; "
    f"copy it first (docs/object-store.md), or {CACHE}: add cas_store to allowChanges for that time",
    "--set=cas.volumeSize=100Gi": "cas.volumeSize: 50Gi of the running StatefulSet would become 100Gi, and a "
    "StatefulSet cannot change it; grow each PersistentVolumeClaim to 100Gi, delete the StatefulSet with "
    "--cascade=orphan, and upgrade (commands: docs/helm.md)",
    "--set=cas.volumeSize=49Gi": "cas.volumeSize: 50Gi of the running StatefulSet would become 49Gi, and a volume "
    f"cannot shrink; {CACHE}: {ANEW}",
    "--set=cas.storageClass=other,redis.storageClass=gp3": "cas.storageClass: gp3 of the running StatefulSet would "
    f"become other, and a volume cannot change its class; {CACHE}: {ANEW}",
    "--set=redis.volumeSize=9Gi": "redis.volumeSize: 10Gi of the running StatefulSet would become 9Gi, and a volume "
    f"cannot shrink; {QUEUE}: {ANEW}",
    "--set=redis.storageClass=other": "redis.storageClass: gp3 of the running StatefulSet would become other, and a "
    f"volume cannot change its class; {QUEUE}: {ANEW}",
}

Upgrade = Callable[..., Done]


@pytest.fixture(scope="module")
def upgrade(shared: Cluster, helm: Helm) -> Upgrade:
    """Install the chart, and return a function that upgrades the release with these arguments, without an effect."""
    for name in ("chart", "chart-workers"):
        shared.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    target = ("--namespace", "chart", "--kubeconfig", shared.kubeconfig)
    done = helm("install", NAME, CHART, *VALUES, *target)
    assert done.returncode == 0, done.stderr

    def run(*arguments: str, chart: Path = CHART) -> Done:
        return helm("upgrade", NAME, chart, *VALUES, *target, "--dry-run=server", *arguments)

    return run


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_breaks_is_refused(change: str, upgrade: Upgrade) -> None:
    done = upgrade(change)
    assert done.returncode == 1
    assert f": this would break what runs:\n{CHANGES[change]}\n" in done.stderr


def test_all_changes_come_at_once(upgrade: Upgrade) -> None:
    done = upgrade(FOUR, "--set=cas.storageClass=other,cas.volumeSize=1Ti,redis.volumeSize=1Gi")
    found = [line.split(": ")[0] for line in done.stderr.partition("what runs:\n")[2].splitlines() if "; " in line]
    assert found == ["cas.volumeSize", "cas.storageClass", "cas.replicas", "redis.volumeSize", "redis.storageClass"]


@pytest.mark.parametrize(
    "change",
    [
        "--set=cas.volumeSize=51200Mi",  # as much in another unit
        "--set=cas.resources.limits.memory=6Gi",
        "--set=scheduler.backend=memory,scheduler.replicas=1,redis.volumeSize=1Gi",  # no Redis any more
        f"{FOUR},allowChanges={{cas_replicas}}",
        f"{BUCKET},cas.replicas=4,allowChanges={{cas_store}}",
    ],
)
def test_other_changes_are_made(change: str, upgrade: Upgrade) -> None:
    done = upgrade(change)
    assert done.returncode == 0, done.stderr


def test_counter_run_without_the_comparison_the_cache_is_lost(upgrade: Upgrade, tmp_path: Path) -> None:
    chart = shutil.copytree(CHART, tmp_path / "nativelink")
    (chart / "templates/_changes.tpl").write_text('{{- define "nativelink.refuseChanges" }}{{ end }}')
    done = upgrade(FOUR, chart=chart)
    assert done.returncode == 0
    assert "\n  replicas: 4\n" in done.stdout


def test_a_cas_that_has_been_stopped_may_start(upgrade: Upgrade, shared: Cluster) -> None:
    shared.run("-n", "chart", "scale", CAS, "--replicas=0")
    try:
        assert upgrade().returncode == 0
    finally:
        shared.run("-n", "chart", "scale", CAS, "--replicas=3")


def test_a_deleted_statefulset_may_come_back_with_larger_volumes(upgrade: Upgrade, shared: Cluster) -> None:
    shared.run("-n", "chart", "delete", CAS, "--cascade=orphan")
    assert upgrade("--set=cas.volumeSize=100Gi").returncode == 0

"""Metrics and alerts on a real node: what all components really send, collected by the tree's own Prometheus.

The farm has a scheduler in memory, KEDA and an edge. All times of its monitoring are a tenth of what a user has, so
that each alert can be set off by its fault. The tests run in the order of the file. One that sets off an alert for the
second time first waits for its end, and ``test_all_alerts_end`` waits for the end of all.
"""

import contextlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.waiting import patient, until
from testkit.authority import Authority
from testkit.client import repeated, watched
from testkit.edge import CAS, HOST
from testkit.farm import VOLUMES, claimed, secret
from testkit.nativelink import only_original
from tests.e2e.monitoring.conftest import POOL, WORKERS, Monitored, monitored, mount_disk

# A shell loop over the processes of NativeLink in a worker's pod, as $each of /proc.
OF_NATIVELINK = 'for each in /proc/[0-9]*; do [ "$(readlink $each/exe)" = /shared/nativelink ] && '
# Each job, and the number of its targets.
JOBS = {
    "nativelink-collector": 1,
    "nativelink-reported": 1,
    "nativelink-workers": 1,
    "nativelink-edge": 1,
    "nativelink-keda": 1,
    "nativelink-kube-state-metrics": 1,
    "nativelink-kubelet": 2,
}


def test_all_targets_are_up(farm: Monitored) -> None:
    wanted = {job: ["up"] * number for job, number in JOBS.items()}
    until("all targets to be up", lambda: farm.targets() == wanted, 120, lambda: f": {farm.targets()}")


def test_no_alert_fires_under_normal_load(farm: Monitored) -> None:
    farm.ended()
    seen: set[str] = set()
    load = ("--actions=150", "--concurrency=3", "--seconds=0-1", "--salt=normal", "--lookup")
    with farm.outside.start(*load, pool="default") as client:
        said = watched(client, lambda: seen.update(farm.firing()))
        assert client.returncode == 0, said
    assert seen == set()


def test_the_status_of_a_farm_at_rest(farm: Monitored, tmp_path: Path) -> None:
    farm.where.run("annotate", "namespace", CAS, "nativelink.gitops/verified=2026-11-30T16:00:00Z ok")
    file = tmp_path / "status.json"
    farm.site.playbook("status", "-e", f"status_json={file}")
    (found,) = json.loads(file.read_text())["clusters"].values()
    versions, pool = found["version"], found["pools"]["default"]
    assert versions["running"] == [versions["wanted"]]
    assert (pool["now"] >= 1, pool["min"], pool["max"], found["queued"], found["executing"]) == (True, 1, 2, 0, 0)
    assert found["room"].keys() == {"data-nativelink-cas-0", "data-nativelink-cas-1"}
    assert min(found["room"].values()) > 0.1
    assert (found["alerts"], found["trouble"], found["unmatched"]) == ([], [], [])
    assert found["verified"] == "2026-11-30T16:00:00Z ok"


@only_original("what it logs")
def test_who_ran_an_action(farm: Monitored) -> None:
    farm.outside.report("--actions=1", "--seconds=0-0", "--salt=traced", pool="default")
    log = farm.where.run("-n", CAS, "logs", "deployment/nativelink-scheduler", "--tail=-1")
    hashes = re.findall(r'ActionUniqueKey .*?DigestInfo\(\\"([0-9a-f]{64})', log)
    done = farm.site.playbook("trace", "-e", f"trace_action={hashes[-1]}").output
    assert "exit code 0, in the action cache" in done
    assert " of pool default" in done
    assert farm.site.run("-e", f"trace_action={'0' * 64}/1", playbook="trace").status == 2


def test_a_certificate_that_expires_soon(farm: Monitored) -> None:
    authority = Authority("Servers of the tests")
    (farm.certificates / "servers.crt").write_bytes(authority.pem)
    for days in (1, 90):
        certificate, key = authority.issue(HOST, days=days)
        farm.where.apply(secret("edge-tls", "kubernetes.io/tls", {"tls.crt": certificate, "tls.key": key}))
        if days == 1:
            farm.fires("CertificateExpiry")


def test_actions_that_no_worker_runs(farm: Monitored) -> None:
    with farm.load(10) as load:
        load.hold(10)
        farm.fires("SchedulerNotMatching", "PoolAtMaximum", seconds=200)


def test_a_scheduler_that_is_gone(farm: Monitored) -> None:
    with farm.without("deployment/nativelink-scheduler"), farm.requests():
        farm.fires("SchedulerDown", "DemandLost", "MetricsLost", "EdgeErrors", "EdgeGivesUp", seconds=200)


def test_a_collector_that_is_gone(farm: Monitored) -> None:
    lost = ("DemandLost", "KEDAFallback", "MetricsLost")
    farm.ended(*lost)
    with farm.without("deployment/nativelink-collector"):
        farm.fires(*lost, seconds=200)


@contextlib.contextmanager
def cordoned(farm: Monitored) -> Iterator[None]:
    farm.where.run("cordon", "real-1")
    try:
        yield
    finally:
        farm.where.run("uncordon", "real-1")


def test_pods_that_find_no_node(farm: Monitored) -> None:
    pending = ("CASPodDown", "EdgeGivesUp", "WorkersPending")
    farm.ended(*pending)
    with cordoned(farm):
        farm.where.run("-n", CAS, "delete", "pod", "nativelink-cas-0", "nativelink-cas-1", "--wait=false")
        # All of them, because one may be about to go anyway.
        farm.where.run("-n", WORKERS, "delete", "pod", "-l", "app.kubernetes.io/component=worker", "--wait=false")
        with farm.requests():
            farm.fires(*pending, seconds=200)
    farm.ready()


def test_wrong_bytes_are_refused_and_noticed(farm: Monitored) -> None:
    with repeated(farm.client().command("put")):
        farm.fires("UploadsRefused")


def test_a_worker_that_runs_out_of_memory(farm: Monitored) -> None:
    # On a machine with cgroup v1 the kernel ends one process only, here NativeLink: no other is as large.
    chosen = f"{OF_NATIVELINK} echo 1000 > $each/oom_score_adj; done; "
    small = "head -c 4000000 /dev/zero | tail -c 4000000 | (sleep 15; cat > /dev/null) & "
    fill = f"{chosen} i=0; while [ $i -lt 90 ]; do {small} i=$((i + 1)); done; wait"
    with acting(farm, fill):
        farm.fires("WorkerOutOfMemory")
    # Its kubelet would wait longer each time before it starts it again. The next test needs a worker within a minute.
    farm.where.run("-n", WORKERS, "delete", "pods", "--all", "--force", "--grace-period=0")
    farm.where.rolled_out(WORKERS, "deployment/nativelink-worker-default")


def test_a_worker_that_fills_its_disk(farm: Monitored) -> None:
    with acting(farm, "head -c 2500000000 /dev/zero > /tmp/fill; sleep 60"):
        farm.fires("WorkerEvicted", seconds=200)


@contextlib.contextmanager
def acting(farm: Monitored, script: str) -> Iterator[None]:
    """Run a script as an action meanwhile, until the client gives up."""
    command = f"--command={json.dumps(['/bin/sh', '-c', script])}"
    with farm.outside.start(command, "--timeout=60", "--retries=0", pool="default"):
        yield


def test_all_alerts_end(farm: Monitored) -> None:
    # A pod that was evicted stays until it is deleted. The scheduler may have given its action to another worker.
    with repeated(farm.where.command("-n", WORKERS, "delete", "pods", "--field-selector=status.phase=Failed")):
        farm.ended()


@pytest.mark.soak
def test_a_worker_that_hangs(farm: Monitored) -> None:
    pod = farm.worker()
    farm.where.run(
        "-n", WORKERS, "exec", pod, "--", "sh", "-c", OF_NATIVELINK + "kill -STOP ${each#/proc/}; done; true"
    )
    farm.fires("WorkersGivenUp")
    farm.where.run("-n", WORKERS, "delete", "pod", pod, "--force", "--grace-period=0")
    farm.ended("WorkersGivenUp")


@pytest.mark.soak
def test_a_drain_that_does_not_end(farm: Monitored) -> None:
    pod = farm.worker()
    finalizers = ("-n", WORKERS, "patch", "pod", pod, "--type=merge", "-p")
    farm.where.run(*finalizers, json.dumps({"metadata": {"finalizers": ["nativelink-gitops/stuck"]}}))
    try:
        farm.where.run("-n", WORKERS, "delete", "pod", pod, "--grace-period=1", "--wait=false")
        farm.fires("DrainStuck", seconds=240)
    finally:
        farm.where.run(*finalizers, json.dumps({"metadata": {"finalizers": None}}))
    farm.ended("DrainStuck")


@pytest.mark.soak
def test_a_disk_that_is_full(farm: Monitored) -> None:
    """A small file system lies on the volume of a CAS pod, and something else fills it."""
    volume = claimed(farm.where, CAS, "data-nativelink-cas-0")
    with cordoned(farm):
        farm.where.run("-n", CAS, "delete", "pod", "nativelink-cas-0")
        mount_disk(farm.where, f"{VOLUMES}/{volume.name}", "size=64m", "nr_inodes=2000")
    farm.where.rolled_out(CAS, "statefulset/nativelink-cas")
    with contextlib.suppress(OSError):  # it is full
        (volume / "fill").write_bytes(bytes(100_000_000))
    others = [volume / f"file-{number}" for number in range(2000)]
    with contextlib.suppress(OSError):  # it has no inode left
        for other in others:
            other.touch()
    full = ("CASDiskFull", "CASInodesFull", "UploadErrors")
    with repeated(farm.client().command("put", "--right")):
        farm.fires(*full, seconds=240)
    for other in (volume / "fill", *others):
        other.unlink(missing_ok=True)
    farm.ended(*full)


@pytest.mark.soak
def test_a_cache_that_no_longer_hits(farm: Monitored) -> None:
    load = ("--actions=150", "--concurrency=3", "--seconds=0-0", "--lookup", f"--timeout={patient(120)}")

    def build_again(salt: str) -> None:
        assert farm.outside.report(*load, f"--salt={salt}", pool="default")["failed"] == 0

    for _ in range(3):
        build_again("hits")
    time.sleep(190)  # the window of the present rate
    build_again("misses")
    farm.fires("CacheHitRateCollapsed", seconds=120)


HOUR = 3600


@pytest.mark.soak
def test_no_alert_fires_in_an_hour_of_normal_load(state: Path, tmp_path: Path) -> None:
    """The times are those of a user. The load comes and goes, so that workers start and drain."""
    more = {**POOL, "max_replicas": 4, "scale_down": {"stabilizationWindowSeconds": 60}}
    with monitored("e2e-calm", tmp_path, nativelink_worker_pools=[more]) as calm:
        seen: dict[str, list[str]] = {}
        began, most, least = time.monotonic(), 0, 99

        def look() -> None:
            for alert in calm.firing():
                seen.setdefault(alert, []).append(f"{time.monotonic() - began:.0f} s")

        while (passed := time.monotonic() - began) < HOUR:
            size = 60 if passed % 600 < 300 else 3  # five minutes of load, five of nearly none
            salt = f"--salt={int(passed) // 60 % 2 * passed}"  # in every second minute the same actions again
            load = (f"--actions={size}", "--seconds=0-3", "--lookup", "--timeout=300", salt)
            with calm.outside.start(*load, pool="default") as client:
                said = watched(client, look, 2)
                assert client.returncode == 0, said
            ready = ("get", "deployment", "nativelink-worker-default", "-o", "jsonpath={.status.readyReplicas}")
            workers = int(calm.where.run("-n", WORKERS, *ready) or 0)
            most, least = max(most, workers), min(least, workers)
            time.sleep(5)
        assert seen == {}
        assert (least, most) == (1, 4), "the load did not move the pool, so the hour shows little"

"""Metrics and alerts on a real node: what all components really send, collected by the tree's own Prometheus.

The farm has a scheduler in memory, KEDA and an edge. All times of its monitoring are a tenth of what a user has, so
that each alert can be set off by its fault and seen to end. The tests share one cluster and run in the order of the
file.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import dashboards
from dashboards import pictures
from testbed import build, components, manifests, node
from testbed.cluster import Cluster
from testbed.waiting import patient, until
from testkit import chain, nativelink
from testkit.alerting import Prometheus, api_server, hurry
from testkit.authority import Authority
from testkit.chain import Load, secret
from testkit.edge import CAS, HOST, NAME, Edge, opened
from testkit.site import pool

Object = dict[str, Any]
WORKERS = "nativelink-workers"
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


@dataclass(frozen=True)
class Monitored(Prometheus):
    """A farm with an edge, and its Prometheus."""

    edge: Edge

    def scale(self, workload: str, replicas: int) -> None:
        self.where.run("-n", CAS, "scale", workload, f"--replicas={replicas}")

    @contextlib.contextmanager
    def without(self, workload: str, replicas: int = 1) -> Iterator[None]:
        """Stop all pods of a workload, and start this many afterwards."""
        self.scale(workload, 0)
        try:
            yield
        finally:
            self.scale(workload, replicas)
            self.where.rolled_out(CAS, workload)

    def worker(self) -> str:
        """Return the name of a worker that is ready."""
        pods = ("-n", WORKERS, "get", "pods", "--field-selector=status.phase=Running", "-o", "name")
        return self.where.run(*pods, "-l", "app.kubernetes.io/component=worker").split()[0].removeprefix("pod/")

    def queue(self) -> Load:
        """Return a load of actions that no worker can run."""
        return Load(self.address("scheduler"), self.address("cas"), 10, self.address("scheduler-workers"))

    def put(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a client that writes wrong bytes to the CAS, or right ones."""
        tool = build.program("reapi-load")
        command = [tool, "put", f"--cas-endpoint=grpc://{self.address('cas')}:50051", *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def address(self, name: str) -> str:
        return self.where.service_address(CAS, f"nativelink-{name}")

    def act(self, script: str, **more: str) -> subprocess.Popen[str]:
        """Start a client whose action runs a shell script."""
        options = {"timeout": "60", "retries": "0", **more}
        command = f"--command={json.dumps(['/bin/sh', '-c', script])}"
        return self.edge.load(
            "--platform=pool=default", command, *(f"--{key}={value}" for key, value in options.items())
        )


def mount_disk(where: Cluster, path: str, *options: str) -> None:
    """Mount a disk in memory on a folder of the node."""
    node.run_inside(where.home, "mount", "-t", "tmpfs", "-o", ",".join(("mode=777", *options)), "tmpfs", path)


def prepare(where: Cluster) -> None:
    """Install what the farm finds on a cluster: KEDA, kube-state-metrics, and a disk for the volumes.

    Without its own disk a volume would be as full as the disk of this machine.
    """
    mount_disk(where, nativelink.VOLUMES, "size=2g")
    wanted = ("keda", "collector", "prometheus", "kube-state-metrics")
    where.load(*(image for name in wanted for image in components.images_of(name)))
    chain.install_keda(where)
    where.run("apply", "--server-side", "-f", str(manifests.path("kube-state-metrics")))


POOL = pool(
    "default",
    **{"slots": 2, "min_replicas": 1, "max_replicas": 2, "longest_action": "2m"},
    **{"scratch_size": "2Gi", "fast_store_size": "10%"},
)


@contextlib.contextmanager
def monitored(name: str, folder: Path, **variables: Any) -> Iterator[Monitored]:
    """Bootstrap a farm with an edge, KEDA and all metrics."""
    stated = {
        "keda_install": "existing",
        "nativelink_scaling": "keda",
        "nativelink_worker_pools": [POOL],
        "nativelink_metrics": ["scheduler", "cas", "worker"],
        "nativelink_prometheus": "bundled",
        "nativelink_prometheus_scrapes": ["edge", "keda", "cluster"],
        **variables,
    }
    with opened(name, folder, prepare, **stated) as edge:
        chain.await_keda(edge.where)
        edge.where.apply(chain.this_machine(edge.where, CAS), api_server(edge.where, CAS))
        yield Monitored(edge.where, CAS, edge)


@pytest.fixture(scope="module")
def farm(state: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    folder = tmp_path_factory.mktemp("monitoring")
    with monitored("e2e-monitoring", folder, nativelink_scheduler_worker_timeout=5) as made:
        hurry(made.edge.site.tree_of(NAME) / "rendered")
        made.edge.apply()
        made.edge.ready()
        made.where.rolled_out(CAS, "deployment/nativelink-collector", "deployment/nativelink-prometheus")
        yield made


def test_all_targets_are_up(farm: Monitored) -> None:
    wanted = {job: ["up"] * number for job, number in JOBS.items()}
    until("all targets to be up", lambda: farm.targets() == wanted, 120, lambda: f": {farm.targets()}")


def test_no_alert_fires_under_normal_load(farm: Monitored) -> None:
    farm.quiet()
    seen: set[str] = set()
    load = ("--platform=pool=default", "--actions=150", "--concurrency=3", "--seconds=0-1", "--salt=normal", "--lookup")
    with farm.edge.load(*load) as client:
        while client.poll() is None:
            seen |= farm.firing()
            time.sleep(1)
        assert client.returncode == 0, client.communicate()
    assert seen == set()


# A farm without a GitOps engine has nothing to show here. The stand-in reports neither
# connections nor hits of a worker's own store.
WITHOUT_DATA = (
    dashboards.EMPTY_WHEN_WELL
    | {("gitops", name) for name in ("Objects", "Attempts a minute", "Time of an attempt", "Attempts by result")}
    | (set() if nativelink.SAVED else {("cache", "Waits for a connection"), ("cache", "Worker's own store")})
)


def test_every_panel_of_the_dashboards_has_data(farm: Monitored) -> None:
    """Some of the actions are new, and others are asked for again, while the panels are read."""
    values = pictures.variables(NAME, CAS, WORKERS, 60)
    missing = set(dashboards.queries(values))

    def look() -> bool:
        for query in list(missing):
            if any(each["value"][1] != "NaN" for each in farm.series(query.expr)):
                missing.discard(query)
        return {(query.dashboard, query.panel) for query in missing} <= WITHOUT_DATA

    load = ("--platform=pool=default", "--concurrency=3", "--seconds=0-1", "--lookup", "--actions=40", "--timeout=120")
    with repeated(lambda: farm.edge.load(*load)), repeated(lambda: farm.edge.load(*load, "--salt=again")):
        until("data of every panel", look, 120, lambda: f": {sorted(missing)}")


def test_a_certificate_that_expires_soon(farm: Monitored) -> None:
    authority = Authority("Servers of the tests")
    (farm.edge.folder / "servers.crt").write_bytes(authority.pem)
    for days in (1, 90):
        certificate, key = authority.issue(HOST, days=days)
        farm.where.apply(secret("edge-tls", "kubernetes.io/tls", {"tls.crt": certificate, "tls.key": key}))
        if days == 1:
            farm.fires("CertificateExpiry")
    farm.quiet()


def test_actions_that_no_worker_runs(farm: Monitored) -> None:
    with farm.queue() as load:
        load.hold(10)
        farm.fires("SchedulerNotMatching", "PoolAtMaximum", seconds=200)
        load.hold(0)
    farm.quiet()


REQUESTS = ("--platform=pool=default", "--seconds=0-0", "--retries=0", "--timeout=60", "--concurrency=5", "--actions=5")


def test_a_scheduler_that_is_gone(farm: Monitored) -> None:
    with farm.without("deployment/nativelink-scheduler"), repeated(lambda: farm.edge.load(*REQUESTS)):
        farm.fires("SchedulerDown", "DemandLost", "MetricsLost", "EdgeErrors", "EdgeGivesUp", seconds=200)
    farm.quiet()


def test_a_collector_that_is_gone(farm: Monitored) -> None:
    with farm.without("deployment/nativelink-collector"):
        farm.fires("DemandLost", "KEDAFallback", "MetricsLost", seconds=200)
    farm.quiet()


def test_cas_pods_that_find_no_node(farm: Monitored) -> None:
    farm.where.run("cordon", "real-1")
    try:
        farm.where.run("-n", CAS, "delete", "pod", "nativelink-cas-0", "nativelink-cas-1", "--wait=false")
        with repeated(lambda: farm.edge.load(*REQUESTS)):
            farm.fires("CASPodDown", "EdgeGivesUp")
    finally:
        farm.where.run("uncordon", "real-1")
    farm.quiet()


@contextlib.contextmanager
def repeated(start: Callable[[], subprocess.Popen[str]]) -> Iterator[None]:
    """Run a client again and again, whether it succeeds or not."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(0.2):
            with start() as client:
                while client.poll() is None and not ended.wait(0.2):
                    pass
                client.kill()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_wrong_bytes_are_refused_and_noticed(farm: Monitored) -> None:
    with repeated(farm.put):
        farm.fires("UploadsRefused")
    farm.quiet()


def test_a_worker_that_finds_no_node(farm: Monitored) -> None:
    farm.where.run("cordon", "real-1")
    try:
        farm.where.run("-n", WORKERS, "delete", "pod", farm.worker(), "--wait=false")
        farm.fires("WorkersPending", seconds=200)
    finally:
        farm.where.run("uncordon", "real-1")
    farm.quiet()


def test_a_worker_that_runs_out_of_memory(farm: Monitored) -> None:
    # On a machine with cgroup v1 the kernel ends one process only, here NativeLink: no other is as large.
    chosen = f"{OF_NATIVELINK} echo 1000 > $each/oom_score_adj; done; "
    small = "head -c 4000000 /dev/zero | tail -c 4000000 | (sleep 15; cat > /dev/null) & "
    with farm.act(f"{chosen} i=0; while [ $i -lt 90 ]; do {small} i=$((i + 1)); done; wait"):
        farm.fires("WorkerOutOfMemory")
    farm.quiet("WorkersGivenUp")


def test_a_worker_that_fills_its_disk(farm: Monitored) -> None:
    with farm.act("head -c 2500000000 /dev/zero > /tmp/fill; sleep 60"):
        farm.fires("WorkerEvicted", seconds=200)
    farm.quiet("WorkersGivenUp", "WorkerEvicted")


@pytest.mark.soak
def test_a_worker_that_hangs(farm: Monitored) -> None:
    pod = farm.worker()
    farm.where.run(
        "-n", WORKERS, "exec", pod, "--", "sh", "-c", OF_NATIVELINK + "kill -STOP ${each#/proc/}; done; true"
    )
    farm.fires("WorkersGivenUp")
    farm.where.run("-n", WORKERS, "delete", "pod", pod, "--force", "--grace-period=0")
    farm.quiet("WorkerEvicted")


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
    farm.quiet("WorkerEvicted")


@pytest.mark.soak
def test_a_disk_that_is_full(farm: Monitored) -> None:
    """A small file system lies on the volume of a CAS pod, and something else fills it."""
    volume = nativelink.claimed(farm.where, CAS, "data-nativelink-cas-0")
    farm.where.run("cordon", "real-1")
    farm.where.run("-n", CAS, "delete", "pod", "nativelink-cas-0")
    mount_disk(farm.where, f"{nativelink.VOLUMES}/{volume.name}", "size=64m", "nr_inodes=2000")
    farm.where.run("uncordon", "real-1")
    farm.where.rolled_out(CAS, "statefulset/nativelink-cas")
    with contextlib.suppress(OSError):  # it is full
        (volume / "fill").write_bytes(bytes(100_000_000))
    others = [volume / f"file-{number}" for number in range(2000)]
    with contextlib.suppress(OSError):  # it has no inode left
        for other in others:
            other.touch()
    with repeated(lambda: farm.put("--right")):
        farm.fires("CASDiskFull", "CASInodesFull", "UploadErrors", seconds=240)
    for other in (volume / "fill", *others):
        other.unlink(missing_ok=True)
    farm.quiet("WorkerEvicted")


@pytest.mark.soak
def test_a_cache_that_no_longer_hits(farm: Monitored) -> None:
    load = ("--platform=pool=default", "--actions=150", "--concurrency=3", "--seconds=0-0", "--lookup")

    def build_again(salt: str) -> None:
        with farm.edge.load(*load, f"--salt={salt}") as client:
            assert client.wait(patient(120)) == 0, client.communicate()

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
        while (passed := time.monotonic() - began) < HOUR:
            size = 60 if passed % 600 < 300 else 3  # five minutes of load, five of nearly none
            salt = f"--salt={int(passed) // 60 % 2 * passed}"  # in every second minute the same actions again
            load = ("--platform=pool=default", f"--actions={size}", "--seconds=0-3", "--lookup", "--timeout=300", salt)
            with calm.edge.load(*load) as client:
                while client.poll() is None:
                    for alert in calm.firing():
                        seen.setdefault(alert, []).append(f"{time.monotonic() - began:.0f} s")
                    time.sleep(2)
                assert client.returncode == 0, client.communicate()
            ready = (
                "-n",
                WORKERS,
                "get",
                "deployment",
                "nativelink-worker-default",
                "-o",
                "jsonpath={.status.readyReplicas}",
            )
            workers = int(calm.where.run(*ready) or 0)
            most, least = max(most, workers), min(least, workers)
            time.sleep(5)
        assert seen == {}
        assert (least, most) == (1, 4), "the load did not move the pool, so the hour shows little"

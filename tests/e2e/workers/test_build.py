"""A real Bazel and a load of actions on a real node, with CAS, scheduler and workers as they are rendered."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from testbed import build, cluster
from testbed.cluster import Cluster
from testbed.waiting import patient, until
from testkit import nativelink
from testkit.bazel import Bazel
from testkit.chain import Entry
from testkit.site import pool

SLOTS = 3  # of each of two workers
NAME = "build"
CAS = ("nativelink-cas-0", "nativelink-cas-1")
WORKERS = "nativelink-worker-default"

PATIENCE = 240  # seconds, enough for Bazel on a busy machine


@pytest.fixture(scope="module")
def where(state: Path) -> Iterator[Cluster]:
    with cluster.fresh("e2e-build", nodes=0, real=True) as made:
        yield made


@pytest.fixture(scope="module")
def farm(where: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Entry:
    made = Entry(where, NAME, tmp_path_factory.mktemp("tree"))
    pools = [pool("default", slots=SLOTS, min_replicas=2)]
    made.apply(pools, nativelink_scaling="none", nativelink_cas_replicas=len(CAS))
    where.rolled_out(NAME, "statefulset/nativelink-cas", "deployment/nativelink-scheduler")
    # A volume of all workers, on which each rule of a build leaves a file when it begins.
    where.apply(nativelink.claim(made.workers, "begun"))
    worker = {"name": "worker", "volumeMounts": [{"name": "begun", "mountPath": "/begun"}]}
    volume = {"name": "begun", "persistentVolumeClaim": {"claimName": "begun"}}
    change = json.dumps({"spec": {"template": {"spec": {"containers": [worker], "volumes": [volume]}}}})
    where.run("-n", made.workers, "patch", "deployment", WORKERS, "-p", change)
    where.rolled_out(made.workers, f"deployment/{WORKERS}")
    return made


@pytest.fixture(scope="module")
def client(where: Cluster, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bazel]:
    """Return a Bazel whose server starts while the pods start."""
    made = Bazel(tmp_path_factory.mktemp("bazel"))
    with ThreadPoolExecutor(1) as background:
        started = background.submit(made.run, "info", "release")
        try:
            farm: Entry = request.getfixturevalue("farm")
            made.endpoints = [
                f"--remote_executor=grpc://{farm.address('nativelink-scheduler')}:50052",
                f"--remote_cache=grpc://{farm.address('nativelink-cas')}:50051",
            ]
            started.result()
            yield made
        finally:
            made.run("shutdown")


def pod_address(farm: Entry, selector: str) -> str:
    path = "jsonpath={.items[0].status.podIP}"
    return farm.where.run("-n", farm.name, "get", "pods", "-l", selector, "-o", path)


def workers(farm: Entry) -> dict[str, str]:
    """Return the UID of each worker's pod by its name, without terminating pods."""
    pods = json.loads(farm.where.run("-n", farm.workers, "get", "pods", "-o", "json"))["items"]
    return {
        each["metadata"]["name"]: each["metadata"]["uid"]
        for each in pods
        if "deletionTimestamp" not in each["metadata"]
    }


def running(farm: Entry) -> dict[str, int]:
    """Return the number of running actions of each worker, by its pod's name."""
    return {name: len(nativelink.actions(farm.where, uid)) for name, uid in workers(farm).items()}


def load(farm: Entry, cas: str, *arguments: str) -> list[str | Path]:
    program = build.program("reapi-load")
    endpoints = (f"--execute-endpoint=grpc://{farm.address('nativelink-scheduler')}:50052", f"--cas-endpoint={cas}")
    return [program, *endpoints, *arguments]


def test_bazel_builds_remotely(client: Bazel) -> None:
    assert client.build("first") == {"remote": 20}


def test_another_build_from_nothing_is_all_cache_hits(client: Bazel) -> None:
    assert client.build("first") == {"remote cache hit": 20}


def test_the_cache_survives_the_restart_of_a_cas_pod(farm: Entry, client: Bazel) -> None:
    farm.where.run("-n", NAME, "delete", "pod", CAS[0])
    farm.where.rolled_out(NAME, "statefulset/nativelink-cas")
    assert client.build("first") == {"remote cache hit": 20}


def test_a_worker_deleted_during_a_build_finishes_its_actions(farm: Entry, client: Bazel) -> None:
    assert begun_again(farm, client, "drained") == 0


def test_counter_run_without_time_to_drain_a_deleted_worker_loses_its_actions(farm: Entry, client: Bazel) -> None:
    """The build succeeds too, because the scheduler gives the lost actions to another worker."""
    assert begun_again(farm, client, "killed", "--grace-period=1") == SLOTS


def begun_again(farm: Entry, client: Bazel, word: str, *arguments: str) -> int:
    """Delete a busy worker during a build, and return the number of its actions that began again on other workers."""
    farm.where.rolled_out(farm.workers, f"deployment/{WORKERS}")
    with ThreadPoolExecutor(1) as background:
        building = background.submit(client.build, word, 2 * SLOTS, 12)

        def busy() -> bool:
            return building.done() or sorted(running(farm).values()) == [SLOTS, SLOTS]

        until("two busy workers", busy, PATIENCE, lambda: f": {running(farm)}")
        assert not building.done(), building.result()
        goes = next(iter(workers(farm)))
        farm.where.run("-n", farm.workers, "delete", "pod", goes, "--wait=false", *arguments)
        assert building.result(timeout=patient(PATIENCE)) == {"remote": 2 * SLOTS}
    return len([*nativelink.claimed(farm.where, farm.workers, "begun").glob(f"{word}-*")]) - 2 * SLOTS


def test_each_cas_pod_serves_the_blobs_of_all_cas_pods(farm: Entry) -> None:
    for pod in CAS:
        address = pod_address(farm, f"statefulset.kubernetes.io/pod-name={pod}")
        command = load(farm, f"grpc://{address}:50051", "--actions=25", "--seconds=0.1-0.5", "--platform=pool=default")
        done = subprocess.run(command, capture_output=True, text=True, timeout=patient(120))
        report = json.loads(done.stdout)
        assert (report["ok"], report["failed"]) == (25, 0), done

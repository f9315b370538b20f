"""A real Bazel and a load of actions on a real node: CAS, scheduler and workers as they are rendered.

NativeLink is the stand-in unless TESTBED_IMAGES has the real one. What only the stand-in tells is marked.
"""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from testbed import build, cluster, images
from testbed.cluster import Cluster
from testbed.waiting import patient, until
from tests.e2e.bazel_client import Bazel
from tests.e2e.chain import Entry
from tests.e2e.site import pool

SLOTS = 3  # of each of two workers
NAME = "build"
CAS = ("nativelink-cas-0", "nativelink-cas-1")
WORKERS = "nativelink-worker-default"

PATIENCE = 240  # seconds, for what Bazel does on a machine that has much to do besides

needs_stand_in = pytest.mark.skipif(
    any(name.startswith(f"{images.NATIVELINK}:") for name in images.saved()),
    reason="NativeLink is real here: only the stand-in tells what it queues and loses",
)


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
    where.rolled_out(made.workers, f"deployment/{WORKERS}")
    return made


@pytest.fixture(scope="module")
def client(where: Cluster, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bazel]:
    """Bazel, whose server starts while the pods do."""
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


def tells(farm: Entry) -> dict[str, Any]:
    """What the stand-in's scheduler queues, runs and lost."""
    address = pod_address(farm, "app.kubernetes.io/component=scheduler")
    with urllib.request.urlopen(f"http://{address}:50080/standin/state", timeout=30) as answer:
        return dict(json.load(answer))


def busy(farm: Entry) -> list[str]:
    return [worker["name"] for worker in tells(farm)["workers"] if worker["running"]]


def load(farm: Entry, cas: str, *arguments: str) -> list[str | Path]:
    program = build.binaries(build.NODE_SETS)["reapi-load"]
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


@needs_stand_in
def test_a_worker_deleted_during_a_build_finishes_what_it_runs(farm: Entry, client: Bazel) -> None:
    assert client_loses(farm, client, "drained") == 0


@needs_stand_in
def test_without_time_to_drain_it_loses_that(farm: Entry, client: Bazel) -> None:
    """The counter-run: the build goes well too, as the scheduler gives what is lost to another worker."""
    assert client_loses(farm, client, "killed", "--grace-period=1") > 0


def client_loses(farm: Entry, client: Bazel, word: str, *arguments: str) -> int:
    """Build, delete a busy worker meanwhile, and count the actions that it took along."""
    farm.where.rolled_out(farm.workers, f"deployment/{WORKERS}")
    before = tells(farm)
    with ThreadPoolExecutor(1) as background:
        building = background.submit(client.build, word, 2 * SLOTS, 12)
        until("two busy workers", lambda: building.done() or len(busy(farm)) == 2, PATIENCE)
        assert not building.done(), building.result()
        farm.where.run("-n", farm.workers, "delete", "pod", busy(farm)[0], "--wait=false", *arguments)
        assert building.result(timeout=patient(PATIENCE)) == {"remote": 2 * SLOTS}
    after = tells(farm)
    assert after["started_more_than_once"] - before["started_more_than_once"] == after["lost"] - before["lost"]
    return int(after["lost"] - before["lost"])


def test_any_cas_pod_answers_for_all(farm: Entry) -> None:
    for pod in CAS:
        address = pod_address(farm, f"statefulset.kubernetes.io/pod-name={pod}")
        command = load(farm, f"grpc://{address}:50051", "--actions=25", "--seconds=0.1-0.5", "--platform=pool=default")
        done = subprocess.run(command, capture_output=True, text=True, timeout=patient(120))
        report = json.loads(done.stdout)
        assert (report["ok"], report["failed"], report["run_more_than_once"]) == (25, 0, 0), done


@needs_stand_in
def test_an_action_that_nobody_can_run_waits_and_goes_with_its_client(farm: Entry) -> None:
    command = load(farm, f"grpc://{farm.address('nativelink-cas')}:50051", "--actions=300", "--hold=600")
    with subprocess.Popen(
        [*command, "--platform=pool=nobody"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdout
        assert [json.loads(client.stdout.readline()) for _ in range(2)] == [{"uploaded": 300}, {"queued": 300}]
        assert tells(farm)["queued"] == 300
        client.communicate("\n", timeout=patient(10))
    until("the queue to be empty", lambda: tells(farm)["queued"] == 0, 5)

"""Workers that stop on a real node: none of their actions is lost, except if they get less time than they need.

Kubernetes, the manifests and their scripts are real. NativeLink is the original or its stand-in, both of which lose
their actions one second after SIGTERM. Each action writes a line on a volume of all workers when it begins, so two
lines mean that the action was killed and began again. A scheduler's number of executions is not enough, because it may
also count those that a worker refused. The loads begin with the first test and run beside the tests of other pools.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from math import inf
from pathlib import Path
from typing import Any

import pytest

from testbed.cluster import Cluster
from testbed.waiting import patient, until
from testkit import nativelink
from testkit.client import Process, reported
from testkit.farm import BEGUN, Farm, actions, deployment, drain, patch, process_of
from testkit.record import Change, Record
from testkit.site import pool
from testkit.trees import resource

WORKERS = "drain-workers"
MOST = 8  # workers of a pool under load
GRACE = 60 + 600 + 300  # longest action, upload timeout, margin
# Its workers report an action three seconds after its folder is gone, which only the stand-in can do.
LATE = pool("late", min_replicas=MOST, slots=4)
POOLS = [
    pool("steady", min_replicas=MOST, slots=4),
    pool("bare", min_replicas=3, slots=4),
    pool("small", min_replicas=3, longest_action="5m"),
    pool("drained", min_replicas=4),
    pool("fragile"),
    pool("forgetful", isolation="none"),  # the entrypoint of isolation needs start.sh
    *([] if nativelink.SAVED else [LATE]),
]
late = pytest.param("late", marks=nativelink.only_stand_in("report late"))
IMPATIENT = {"periodSeconds": 1, "timeoutSeconds": 2, "failureThreshold": 3, "terminationGracePeriodSeconds": 9}


def of_pool(name: str, container: dict[str, Any], **pod: Any) -> dict[str, Any]:
    """Return a user's patch of a pool's container."""
    changed = {"containers": [{"name": "worker", **container}], **pod}
    return patch(deployment(f"nativelink-worker-{name}", changed, namespace=WORKERS))


BUDGET = resource("policy/v1/PodDisruptionBudget", "nativelink-worker-bare", WORKERS)
# More than this would fill a node of two CPUs.
COPIES = {"initContainers": [{"name": "nativelink", "resources": {"requests": {"cpu": "1m"}}}]}
PATCHES = [
    BEGUN,
    *(patch(deployment(f"nativelink-worker-{each['name']}", COPIES, namespace=WORKERS)) for each in POOLS),
    of_pool("bare", {"lifecycle": None}, shareProcessNamespace=None),
    patch({"$patch": "delete", **BUDGET}),
    of_pool("fragile", {"livenessProbe": IMPATIENT}),
    of_pool("forgetful", {"livenessProbe": IMPATIENT, "command": ["/shared/nativelink", "/config/worker.json5"]}),
]
if LATE in POOLS:
    PATCHES.append(of_pool("late", {"env": [{"name": "NATIVELINK_STANDIN_REPORT_DELAY", "value": "3"}]}))


@dataclass(frozen=True)
class Going:
    """A terminating pod: the number of actions that it ran when it was deleted, and its grace period."""

    running: int
    grace: int


@dataclass(frozen=True)
class Started:
    """A client that waits for its actions, each of which writes a line into a file of a folder when it begins."""

    client: Process
    farm: Farm
    folder: str

    def begun(self) -> list[int]:
        """Return how often each action began, after checking that all of them succeeded."""
        report = reported(self.client)
        assert [each["outcome"] for each in report["actions"]] == ["ok"] * len(report["actions"]), report
        return self.farm.begun(f"{self.folder}/*")


# The result of a load under scale-ins: how often each action began, and the workers that stopped.
Loaded = tuple[list[int], dict[str, Going]]


@dataclass(frozen=True)
class Observed(Farm):
    """A farm, and a record of all pods of its pools."""

    seen: Record
    numbers: count[int] = field(default_factory=count)

    def start(self, name: str, actions: int, seconds: str, *more: str) -> Started:
        """Start a client that runs actions of this many seconds in a pool, and ends when they end."""
        folder = f"{name}-{next(self.numbers)}"
        options = (f"--timeout={patient(120):.0f}", f"--actions={actions}", f"--seconds={seconds}")
        client = self.client().start(*options, f"--begun=/begun/{folder}", *more, pool=name)
        return Started(client, self, folder)

    def running(self, name: str) -> dict[str, int]:
        """Return the number of running actions of each worker of a pool by its pod's name, without terminating pods."""
        uids = {change.object["metadata"]["name"]: change.object["metadata"]["uid"] for change in self.changes(name)}
        return {pod: len(actions(self.where, uids[pod])) for pod in self.alive(name)}

    def busy(self, name: str, actions: int) -> list[str]:
        """Wait until a pool runs this many actions, and return the workers that run them."""
        found: dict[str, int] = {}

        def complete() -> bool:
            found.clear()
            found.update(self.running(name))
            return sum(found.values()) == actions

        until(f"pool {name} to run {actions} actions", complete, 20, lambda: f": {found}")
        return [pod for pod, number in found.items() if number]

    def changes(self, of: str) -> list[Change]:
        """Return the changes of a pod, or of the pods of a pool."""

        def named(metadata: dict[str, Any]) -> bool:
            return of in (metadata["name"], metadata["labels"]["nativelink-gitops/pool"])

        return [change for change in list(self.seen.changes) if named(change.object["metadata"])]

    def alive(self, name: str, at: float = inf) -> dict[str, bool]:
        """Return whether each pod of a pool was ready at a time (by default now), without terminating pods."""
        pods: dict[str, bool] = {}
        for change in self.changes(name):
            metadata, status = change.object["metadata"], change.object["status"]
            if change.at <= at:
                conditions = {each["type"]: each["status"] for each in status.get("conditions", [])}
                pods[metadata["name"]] = conditions.get("Ready") == "True"
                if change.kind == "DELETED" or "deletionTimestamp" in metadata:
                    del pods[metadata["name"]]
        return pods

    def has(self, name: str, count: int) -> list[str]:
        """Wait until a pool has this many workers, all of them ready, and return their names."""

        def complete() -> bool:
            return list(self.alive(name).values()) == [True] * count

        until(f"pool {name} to have {count} ready workers", complete, 180, lambda: f": {self.alive(name)}")
        return list(self.alive(name))

    def restarts(self, pod: str) -> int:
        """Return how often the container of a pod has restarted."""
        return int(self.run("get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].restartCount}"))

    def told(self, pod: str) -> Change:
        """Return the change with which a pod began to terminate."""
        return next(change for change in self.changes(pod) if "deletionTimestamp" in change.object["metadata"])

    def gone(self, pod: str, seconds: float) -> float:
        """Wait until a pod is gone, and return the time of its removal."""

        def is_gone() -> bool:
            return self.changes(pod)[-1].kind == "DELETED"

        until(f"pod {pod} to be gone", is_gone, seconds)
        return self.changes(pod)[-1].at

    def delete(self, pod: str, *arguments: str) -> float:
        """Delete a pod without waiting, and return the time of the request."""
        asked = time.monotonic()
        self.run("delete", "pod", pod, "--wait=false", *arguments)
        return asked

    def history(self, name: str) -> str:
        """Return the scheduler's log about a pool's workers that are gone, and the events of its pods."""
        log = self.where.run("-n", self.name, "logs", "deployment/nativelink-scheduler", "--tail=-1")
        events = self.run("get", "events", "-o", "custom-columns=AT:lastTimestamp,POD:involvedObject.name,WHAT:message")
        lines = [line for line in log.splitlines() if "Evicting worker" in line] + events.splitlines()
        return "\n".join(line for line in lines if f"-worker-{name}-" in line)

    def scale(self, name: str, replicas: int) -> None:
        """Scale a pool with the scale subresource, as an autoscaler does."""
        self.run("scale", f"deployment/nativelink-worker-{name}", f"--replicas={replicas}")

    def scale_in(self, name: str, replicas: int) -> dict[str, Going]:
        """Scale a pool down, wait until the workers that stop are chosen, and return them."""
        running, before = self.running(name), self.alive(name).keys()
        self.scale(name, replicas)

        def chosen() -> set[str]:
            return before - self.alive(name).keys()

        until(f"pool {name} to shrink to {replicas}", lambda: len(chosen()) >= len(before) - replicas, 20)
        graces = {pod: self.told(pod).object["metadata"]["deletionGracePeriodSeconds"] for pod in chosen()}
        return {pod: Going(running.get(pod, 0), grace) for pod, grace in graces.items()}

    def shrink_under_load(self, name: str, rounds: int, seed: int) -> Loaded:
        """Run 100 actions of 1 to 20 s, with 15 scale-ins at random moments. `rounds` multiplies both numbers."""
        moments = sorted(random.Random(seed).uniform(2, 30 * rounds) for _ in range(15 * rounds))
        replicas, went = MOST, dict[str, Going]()
        load = self.start(name, 100 * rounds, "1-20", f"--seed={seed}", f"--timeout={patient(300) * rounds:.0f}")
        until(f"pool {name} to run actions", lambda: any(self.running(name).values()), 60)
        began = time.monotonic()
        for number, moment in enumerate(moments, 1):
            time.sleep(max(0.0, began + moment - time.monotonic()))
            replicas -= 1
            went |= self.scale_in(name, replicas)
            if number % 5 == 0:
                replicas = MOST
                self.scale(name, replicas)
                # Otherwise the next scale-in would remove workers that are not ready and run nothing.
                self.has(name, replicas)
        return load.begun(), went


@pytest.fixture(scope="module")
def farm(where: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    made = Farm(where, "drain", tmp_path_factory.mktemp("clusters"))
    with made.pods() as pods:
        made.apply(POOLS, *PATCHES)
        made.ready()
        observed = Observed(where, made.name, made.folder, pods)
        for each in POOLS:
            observed.has(each["name"], each["min_replicas"])
        yield observed


@pytest.fixture(scope="module")
def loads(farm: Observed) -> Iterator[dict[str, Future[Loaded]]]:
    """Start the loads of the pools steady and late, if they exist. The loads run beside the tests."""
    there = {each["name"] for each in POOLS} & {"steady", "late"}
    with ThreadPoolExecutor() as threads:
        yield {name: threads.submit(farm.shrink_under_load, name, 1, seed) for seed, name in enumerate(sorted(there))}


def test_processes_that_an_action_leaves_behind_are_reaped(farm: Observed, loads: object) -> None:
    def zombies(worker: str) -> int:
        return farm.run("exec", worker, "--", "sh", "-c", "grep -h ^State /proc/[0-9]*/status").count("Z (zombie)")

    ours, bare = (farm.has(name, 3)[0] for name in ("small", "bare"))
    for worker in (ours, bare):
        farm.run("exec", worker, "--", "sh", "-c", "(sleep 0.5 &)")
    until("the zombie to stay in the pool without the protection", lambda: zombies(bare) == 1, 10)
    assert zombies(ours) == 0


def test_a_pod_that_is_deleted_again_finishes_its_actions(farm: Observed, loads: object) -> None:
    farm.has("small", 3)
    load = farm.start("small", 1, "12-12")
    (pod,) = farm.busy("small", 1)
    asked = farm.delete(pod)
    time.sleep(2)
    farm.delete(pod)
    time.sleep(2)
    # The API server takes the shorter grace period, but the kubelet lets the running hook finish (Kubernetes 1.36.4).
    farm.delete(pod, "--grace-period=1")
    assert load.begun() == [1]
    assert farm.gone(pod, 90) - asked > 12


def test_a_spot_interruption_kills_only_actions_that_outlast_its_grace_period(farm: Observed, loads: object) -> None:
    farm.has("small", 3)
    long = farm.start("small", 1, "75-75")
    farm.busy("small", 1)
    short = farm.start("small", 1, "12-12")
    for pod in farm.busy("small", 2):
        farm.delete(pod, "--grace-period=45")
    assert short.begun() == [1]
    assert long.begun() == [2], "the action should be killed, and begin again elsewhere"


@pytest.mark.parametrize("by", ["the kernel's OOM killer", "SIGKILL"])
def test_a_worker_that_is_killed_comes_back_and_its_action_runs_elsewhere(
    farm: Observed, loads: object, by: str
) -> None:
    """With cgroup v2 the kernel kills the whole container, and with v1 only the largest process.

    SIGKILL to process 1 ends all processes of the container, as v2 does.
    """
    farm.has("small", 3)
    load = farm.start("small", 1, "10-10")
    (name,) = farm.busy("small", 1)
    pod = json.loads(farm.run("get", "pod", name, "-o", "json"))
    whole = by == "SIGKILL" or Path("/sys/fs/cgroup/cgroup.controllers").exists()
    if by == "SIGKILL":
        os.kill(process_of(pod["metadata"]["uid"]), signal.SIGKILL)
    else:
        farm.run("exec", name, "--", "sh", "-c", "tail /dev/zero || [ $? -eq 137 ]")
    assert load.begun() == [2 if whole else 1]

    if whole:
        until(f"pod {name} to have restarted", lambda: farm.restarts(name) == 1, 20)
    farm.has("small", 3)
    assert farm.restarts(name) == whole
    assert farm.start("small", 3, "3-3").begun() == [1, 1, 1], "each of the three workers should take one action"


def test_a_marker_does_not_outlive_its_container(farm: Observed, loads: object) -> None:
    """A liveness kill of a worker that hangs also runs the hook. The counter-run starts NativeLink without start.sh."""
    names = {pool: farm.has(pool, 1)[0] for pool in ("fragile", "forgetful")}
    for name in names.values():
        uid = farm.run("get", "pod", name, "-o", "jsonpath={.metadata.uid}")
        os.kill(process_of(uid), signal.SIGSTOP)

    def marked(name: str) -> bool:
        return farm.run("exec", name, "--", "ls", "/drain") == "draining\n"

    def restarted(name: str) -> bool:
        status = json.loads(farm.run("get", "pod", name, "-o", "json"))["status"]["containerStatuses"][0]
        return bool(status["restartCount"] >= 1 and status["ready"])

    for name in names.values():
        until(f"the hook of {name} to make its marker", lambda name=name: marked(name), 20)  # type: ignore[misc]
    for name in names.values():
        until(f"{name} to come back", lambda name=name: restarted(name), 40)  # type: ignore[misc]
    refused = farm.start("forgetful", 1, "1-1", "--timeout=5")
    assert farm.start("fragile", 1, "1-1").begun() == [1]
    assert reported(refused.client)["ok"] == 0
    assert [marked(name) for name in names.values()] == [False, True]


def drained(farm: Observed, name: str) -> tuple[str, float]:
    """Drain the workers of a pool from the node, and return kubectl's output and the time of the start."""
    began = time.monotonic()
    return drain(farm.where, f"nativelink-gitops/pool={name}", "--delete-emptydir-data"), began


def fewest(farm: Observed, name: str, since: float) -> int:
    """Return the smallest number of ready workers of a pool at a time, without terminating ones."""
    moments = [change.at for change in farm.changes(name) if change.at > since]
    return min(sum(farm.alive(name, at).values()) for at in moments)


def test_a_worker_whose_scratch_fails_restarts_and_its_actions_run_elsewhere(farm: Observed, loads: object) -> None:
    name, *_ = farm.has("drained", 4)
    farm.run("exec", name, "--", "mv", "/scratch/store", "/scratch/elsewhere")
    assert farm.start("drained", 4, "3-3").begun() == [1, 1, 1, 1]
    until(f"pod {name} to have restarted", lambda: farm.restarts(name) == 1, 60)


def test_a_node_drain_takes_one_worker_of_four_at_a_time_and_loses_nothing(farm: Observed, loads: object) -> None:
    before = farm.has("drained", 4)
    load = farm.start("drained", 4, "10-20")
    farm.busy("drained", 4)
    said, began = drained(farm, "drained")
    assert "violate the pod's disruption budget" in said
    assert load.begun() == [1, 1, 1, 1]
    assert not set(before) & set(farm.has("drained", 4))
    assert fewest(farm, "drained", began) == 3


def test_counter_run_without_the_hook_actions_are_killed_and_without_a_budget_all_workers_stop_at_once(
    farm: Observed, loads: object
) -> None:
    farm.has("bare", 3)
    load = farm.start("bare", 20, "8-12")
    farm.busy("bare", 12)
    went = farm.scale_in("bare", 2)
    assert [how.running for how in went.values()] == [4]
    assert sorted(load.begun()) == [1] * 16 + [2] * 4
    said, began = drained(farm, "bare")
    assert "disruption budget" not in said
    assert fewest(farm, "bare", began) == 0


def assert_nothing_was_lost(farm: Observed, name: str, loaded: Loaded, rounds: int) -> None:
    times, went = loaded
    busy = [how.running for how in went.values() if how.running]
    print(
        f"\n{len(times)} actions ended well, {len(times) - times.count(1)} were killed; "
        f"{len(went)} workers went, {len(busy)} of them running {sum(busy)} actions"
    )
    assert len(times) == 100 * rounds
    assert times.count(1) == len(times), farm.history(name)
    assert len(went) == 15 * rounds
    assert {how.grace for how in went.values()} == {GRACE}
    assert len(busy) >= 3 * rounds, "too few of the removed workers were busy to show anything"


@pytest.mark.parametrize("name", ["steady", late])
def test_scale_ins_lose_nothing(farm: Observed, loads: dict[str, Future[Loaded]], name: str) -> None:
    """Workers of the pool late report an action three seconds after its folder is gone."""
    assert_nothing_was_lost(farm, name, loads[name].result(), 1)


def test_the_newest_worker_stops_first(farm: Observed) -> None:
    old = farm.has("small", 3)
    farm.scale("small", 4)
    (newest,) = set(farm.has("small", 4)) - set(old)
    assert list(farm.scale_in("small", 3)) == [newest]


@pytest.mark.soak
@pytest.mark.parametrize("name", ["steady", late])
def test_ten_times_as_many_scale_ins_lose_nothing(farm: Observed, name: str) -> None:
    farm.scale(name, MOST)
    farm.has(name, MOST)
    assert_nothing_was_lost(farm, name, farm.shrink_under_load(name, 10, seed=10), 10)

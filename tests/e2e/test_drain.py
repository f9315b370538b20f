"""Workers that stop on a real node: none of their actions is lost, except if they get less time than they need.

Kubernetes, the manifests and their scripts are real. NativeLink is the original or its stand-in, both of which lose
their actions one second after SIGTERM. Each action writes a line on a volume of all workers when it begins, so two
lines mean that the action was killed and began again. A scheduler's number of executions is not enough, because it may
also count those that a worker refused. The loads begin with the first test and run beside the tests of other pools.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from math import inf
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render
from ansible_collections.nativelink.gitops.plugins.plugin_utils.tree import write

from testbed import build, cluster, node
from testbed.cluster import Cluster
from testbed.waiting import patient, until
from tests.e2e import nativelink
from tests.e2e.chain import Change, Record, secure_namespace
from tests.e2e.site import SMALL, pool
from tests.render.conftest import values_of

SPACE, WORKERS = "nativelink", "nativelink-workers"
MOST = 8  # workers of a pool under load
GRACE = 60 + 600 + 300  # longest action, upload timeout, margin
# Pools whose workers are slow on purpose, which only the stand-in can be: see PATCHES.
DELAYED = [
    pool("late", min_replicas=MOST, slots=4),
    *(pool(f"{hook}-{moment}") for hook in ("slow", "hasty") for moment in ("begin", "end")),
]
POOLS = [
    pool("steady", min_replicas=MOST, slots=4),
    pool("bare", min_replicas=3, slots=4),
    pool("small", min_replicas=3),
    pool("drained", min_replicas=4),
    pool("fragile"),
    pool("forgetful", isolation="none"),  # the entrypoint of isolation needs start.sh
    *([] if nativelink.SAVED else DELAYED),
]
delays = nativelink.only_stand_in("make an action's folder late, and report late")
IMPATIENT = {"periodSeconds": 1, "timeoutSeconds": 2, "failureThreshold": 3, "terminationGracePeriodSeconds": 9}


def delay(what: str, seconds: int) -> dict[str, Any]:
    """Return a patch that delays a worker before an action's folder is made (START) or after it is gone (REPORT)."""
    return {"env": [{"name": f"NATIVELINK_STANDIN_{what}_DELAY", "value": str(seconds)}]}


# A hook that does not know when the last action began.
HASTY = {
    "lifecycle": {"preStop": {"exec": {"command": ["/bin/sh", "-c", "rm -f /drain/begun; exec /config/drain.sh"]}}}
}
# The changes of a user's patch to the worker's container, by pool.
PATCHES: dict[str, dict[str, Any]] = {
    "late": delay("REPORT", 3),
    "bare": {"lifecycle": None},
    "slow-begin": delay("START", 15),
    "slow-end": delay("REPORT", 15),
    "hasty-begin": delay("START", 40) | HASTY,
    "hasty-end": delay("REPORT", 40) | HASTY,
    "fragile": {"livenessProbe": IMPATIENT},
    "forgetful": {"livenessProbe": IMPATIENT, "command": ["/shared/nativelink", "/config/worker.json5"]},
}


# A volume of all workers, on which each action writes a line when it begins.
BEGUN = "/begun"
CLAIM = nativelink.claim(WORKERS, "begun")


def patch(name: str, container: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": f"nativelink-worker-{name}", "namespace": WORKERS}
    copies = {"name": "nativelink", "resources": {"requests": {"cpu": "1m"}}}  # more would fill a node of two CPUs
    worker = {"name": "worker", "volumeMounts": [{"name": "begun", "mountPath": BEGUN}], **container}
    volumes = [{"name": "begun", "persistentVolumeClaim": {"claimName": "begun"}}]
    pod: dict[str, Any] = {"initContainers": [copies], "containers": [worker], "volumes": volumes}
    if name == "bare":
        pod["shareProcessNamespace"] = None
    spec = {"template": {"spec": pod}}
    return {
        "patch": yaml.safe_dump({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec})
    }


NO_BUDGET = {
    "patch": yaml.safe_dump(
        {
            "$patch": "delete",
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": "nativelink-worker-bare", "namespace": WORKERS},
        }
    )
}


@dataclass(frozen=True)
class Going:
    """A terminating pod: the number of actions that it ran when it was deleted, and its grace period."""

    running: int
    grace: int


@dataclass(frozen=True)
class Load:
    """A client that waits for its actions, and the folder in which each action writes a line when it begins."""

    client: subprocess.Popen[str]
    folder: Path

    def report(self) -> dict[str, Any]:
        """Return the client's result: ``ok``, ``failed`` and each of its ``actions``."""
        return dict(json.loads(self.client.communicate()[0]))

    def begun(self) -> list[int]:
        """Return how often each action began, after checking that all of them succeeded."""
        report = self.report()
        assert [each["outcome"] for each in report["actions"]] == ["ok"] * len(report["actions"]), report
        return [len((self.folder / str(each["index"])).read_text().splitlines()) for each in report["actions"]]


@dataclass(frozen=True)
class Loaded:
    """The result of a load under scale-ins: how often each action began, and the workers that stopped."""

    begun: list[int]
    went: dict[str, Going]


class Farm:
    """The pools, their scheduler and CAS, and a record of all pods of the pools."""

    def __init__(self, where: Cluster, pods: Record) -> None:
        self.where, self.pods, self.loads = where, pods, count()
        self.scheduler, self.cas = (self.address(f"nativelink-{name}") for name in ("scheduler", "cas"))

    def address(self, service: str) -> str:
        return self.where.service_address(SPACE, service)

    def run(self, *arguments: str) -> str:
        return self.where.run("-n", WORKERS, *arguments)

    def load(self, name: str, actions: int, seconds: str, *more: str) -> Load:
        """Start a client that runs actions of this many seconds in a pool, and ends when they end."""
        mine = f"{name}-{next(self.loads)}"
        command = [str(build.binaries(build.NODE_SETS)["reapi-load"]), f"--platform=pool={name}"]
        command.append(f"--timeout={patient(120):.0f}")
        command += [f"--execute-endpoint=grpc://{self.scheduler}:50052", f"--cas-endpoint=grpc://{self.cas}:50051"]
        command += [f"--actions={actions}", f"--seconds={seconds}", f"--begun={BEGUN}/{mine}", *more]
        client = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        return Load(client, nativelink.claimed(self.where, WORKERS, "begun") / mine)

    def running(self, name: str) -> dict[str, int]:
        """Return the number of running actions of each worker of a pool by its pod's name, without terminating pods."""
        uids = {change.object["metadata"]["name"]: change.object["metadata"]["uid"] for change in self.changes(name)}
        return {pod: len(nativelink.actions(self.where, uids[pod])) for pod in self.alive(name)}

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

        return [change for change in list(self.pods.changes) if named(change.object["metadata"])]

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

    def ready(self, name: str, count: int) -> list[str]:
        """Wait until a pool has this many workers, all of them ready, and return their names."""

        def complete() -> bool:
            return list(self.alive(name).values()) == [True] * count

        until(f"pool {name} to have {count} ready workers", complete, 180, lambda: f": {self.alive(name)}")
        return list(self.alive(name))

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
        log = self.where.run("-n", SPACE, "logs", "deployment/nativelink-scheduler", "--tail=-1")
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
        load = self.load(name, 100 * rounds, "1-20", f"--seed={seed}", f"--timeout={patient(300) * rounds:.0f}")
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
                self.ready(name, replicas)
        return Loaded(load.begun(), went)


def process_of(pod: dict[str, Any]) -> int:
    """Return the PID of a pod's worker on this machine."""
    for found in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            program = (found / "cmdline").read_bytes().split(b"\0")[0]
            if program == b"/shared/nativelink" and pod["metadata"]["uid"] in (found / "cgroup").read_text():
                return int(found.name)
    raise AssertionError(f"{pod['metadata']['name']} runs no worker")


def tree(folder: Path, machine: str) -> None:
    """Write the folder of a cluster as a user has it: the rendered tree, and patches."""
    peers = [{"ipBlock": {"cidr": f"{machine}/32"}}]
    values = values_of("drain", **SMALL, nativelink_worker_pools=POOLS, nativelink_client_peers=peers)
    write(folder, render.tree(values))
    (folder / "begun.yaml").write_text(yaml.safe_dump(CLAIM))
    patches = [*(patch(each["name"], PATCHES.get(each["name"], {})) for each in POOLS), NO_BUDGET]
    (folder / "kustomization.yaml").write_text(
        yaml.safe_dump({"resources": ["rendered", "begun.yaml"], "patches": patches})
    )


@pytest.fixture(scope="module")
def farm(state: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    with cluster.fresh("e2e-drain", nodes=0, real=True) as where:
        network = node.network(where.home)
        assert network
        folder = tmp_path_factory.mktemp("clusters") / "drain"
        tree(folder, network.machine)
        where.apply(secure_namespace(SPACE, "restricted"), secure_namespace(WORKERS, "baseline"))
        with Record(where, f"/api/v1/namespaces/{WORKERS}/pods") as pods:
            where.run("apply", "--server-side", "--field-manager=engine", "-k", str(folder))
            where.rolled_out(SPACE, "deployment/nativelink-scheduler", "statefulset/nativelink-cas")
            made = Farm(where, pods)
            for each in POOLS:
                made.ready(each["name"], each["min_replicas"])
            yield made


@pytest.fixture(scope="module")
def loads(farm: Farm) -> Iterator[dict[str, Future[Loaded]]]:
    """Start the loads of the pools steady and late, if they exist. The loads run beside the tests."""
    there = {each["name"] for each in POOLS} & {"steady", "late"}
    with ThreadPoolExecutor() as threads:
        yield {name: threads.submit(farm.shrink_under_load, name, 1, seed) for seed, name in enumerate(sorted(there))}


def test_every_pool_has_the_drain_and_a_grace_period_for_its_longest_action(farm: Farm, loads: object) -> None:
    pods = json.loads(farm.run("get", "pods", "-o", "json"))["items"]
    for each in POOLS:
        mine = [pod for pod in pods if pod["metadata"]["labels"]["nativelink-gitops/pool"] == each["name"]]
        assert mine, each["name"]
        for pod in mine:
            assert pod["spec"]["terminationGracePeriodSeconds"] == GRACE
            hook = pod["spec"]["containers"][0].get("lifecycle")
            drain = {"preStop": {"exec": {"command": ["/config/drain.sh"]}}}
            assert hook == PATCHES.get(each["name"], {}).get("lifecycle", drain)
        config = farm.run("exec", mine[0]["metadata"]["name"], "--", "cat", "/config/worker.json5")
        assert 'experimental_precondition_script: "/config/precondition.sh"' in config


def test_processes_that_an_action_leaves_behind_are_reaped(farm: Farm, loads: object) -> None:
    def zombies(worker: str) -> int:
        return farm.run("exec", worker, "--", "sh", "-c", "grep -h ^State /proc/[0-9]*/status").count("Z (zombie)")

    ours, bare = (farm.ready(name, 3)[0] for name in ("small", "bare"))
    for worker in (ours, bare):
        farm.run("exec", worker, "--", "sh", "-c", "(sleep 0.5 &)")
    until("the zombie to stay in the pool without the protection", lambda: zombies(bare) == 1, 10)
    assert zombies(ours) == 0


@delays
def test_a_worker_with_a_slow_cas_loses_no_action(farm: Farm, loads: object) -> None:
    """A worker that is deleted before its action's folder is made, or after the folder is removed, finishes the action.

    The pools with a hasty hook are the counter-run. The stand-in's scheduler counts an execution as soon as the action
    passes the precondition, and does not count refused ones.
    """

    def said(pod: str, script: str) -> str:
        return farm.run("exec", pod, "--", "sh", "-c", script)

    def is_let_in(pod: str) -> bool:
        return said(pod, "ls /drain") == "begun\n"

    def is_over(pod: str) -> bool:
        """Return True if the folder existed and is now removed."""
        return said(pod, "ls /scratch/actions; [ /scratch/actions -ot /drain/begun ] || echo over") == "over\n"

    loaded = {}
    for name in ("hasty-begin", "hasty-end", "slow-begin", "slow-end"):
        (pod,) = farm.ready(name, 1)
        loaded[name] = farm.load(name, 1, "1-1")
        until(f"the action of {pod} to pass the precondition", lambda pod=pod: is_let_in(pod), 20)  # type: ignore[misc]
        if name.endswith("end"):
            until(f"the action of {pod} to lose its folder", lambda pod=pod: is_over(pod), 30)  # type: ignore[misc]
        farm.delete(pod)
    told = {name: [each["executions"] for each in load.report()["actions"]] for name, load in loaded.items()}
    assert told == {"hasty-begin": [2], "hasty-end": [2], "slow-begin": [1], "slow-end": [1]}


def test_a_pod_that_is_deleted_again_finishes_its_actions(farm: Farm, loads: object) -> None:
    farm.ready("small", 3)
    load = farm.load("small", 1, "12-12")
    (pod,) = farm.busy("small", 1)
    asked = farm.delete(pod)
    time.sleep(2)
    farm.delete(pod)
    time.sleep(2)
    # The API server takes the shorter grace period, but the kubelet lets the running hook finish (Kubernetes 1.36.4).
    farm.delete(pod, "--grace-period=1")
    assert load.begun() == [1]
    assert farm.gone(pod, 90) - asked > 12


def test_a_spot_interruption_kills_only_actions_that_outlast_its_grace_period(farm: Farm, loads: object) -> None:
    farm.ready("small", 3)
    short, long = farm.load("small", 1, "5-5"), farm.load("small", 1, "40-40")
    for pod in farm.busy("small", 2):
        farm.delete(pod, "--grace-period=20")
    assert short.begun() == [1]
    assert long.begun() == [2], "the action should be killed, and begin again elsewhere"


@pytest.mark.parametrize("by", ["the kernel's OOM killer", "SIGKILL"])
def test_a_worker_that_is_killed_comes_back_and_its_action_runs_elsewhere(farm: Farm, loads: object, by: str) -> None:
    """With cgroup v2 the kernel kills the whole container, and with v1 only the largest process.

    SIGKILL to process 1 ends all processes of the container, as v2 does.
    """
    farm.ready("small", 3)
    load = farm.load("small", 1, "10-10")
    (name,) = farm.busy("small", 1)
    pod = json.loads(farm.run("get", "pod", name, "-o", "json"))
    whole = by == "SIGKILL" or Path("/sys/fs/cgroup/cgroup.controllers").exists()
    if by == "SIGKILL":
        os.kill(process_of(pod), signal.SIGKILL)
    else:
        farm.run("exec", name, "--", "sh", "-c", "tail /dev/zero || [ $? -eq 137 ]")
    assert load.begun() == [2 if whole else 1]

    def restarts() -> str:
        return farm.run("get", "pod", name, "-o", "jsonpath={.status.containerStatuses[0].restartCount}")

    if whole:
        until(f"pod {name} to have restarted", lambda: restarts() == "1", 20)
    farm.ready("small", 3)
    assert restarts() == ("1" if whole else "0")
    assert farm.load("small", 3, "3-3").begun() == [1, 1, 1], "each of the three workers should take one action"


def test_a_marker_does_not_outlive_its_container(farm: Farm, loads: object) -> None:
    """A liveness kill of a worker that hangs also runs the hook. The counter-run starts NativeLink without start.sh."""
    names = {pool: farm.ready(pool, 1)[0] for pool in ("fragile", "forgetful")}
    for name in names.values():
        os.kill(process_of(json.loads(farm.run("get", "pod", name, "-o", "json"))), signal.SIGSTOP)

    def marked(name: str) -> bool:
        return farm.run("exec", name, "--", "ls", "/drain") == "draining\n"

    def restarted(name: str) -> bool:
        status = json.loads(farm.run("get", "pod", name, "-o", "json"))["status"]["containerStatuses"][0]
        return bool(status["restartCount"] >= 1 and status["ready"])

    for name in names.values():
        until(f"the hook of {name} to make its marker", lambda name=name: marked(name), 20)  # type: ignore[misc]
    for name in names.values():
        until(f"{name} to come back", lambda name=name: restarted(name), 40)  # type: ignore[misc]
    refused = farm.load("forgetful", 1, "1-1", "--timeout=5")
    assert farm.load("fragile", 1, "1-1").begun() == [1]
    assert refused.report()["ok"] == 0
    assert [marked(name) for name in names.values()] == [False, True]


def drain(farm: Farm, name: str) -> tuple[str, float]:
    """Drain the workers of a pool from the node, and return kubectl's output and the time of the start.

    The node is uncordoned at once, so that the new workers start on it.
    """
    began = time.monotonic()
    options = [f"--pod-selector=nativelink-gitops/pool={name}", "--delete-emptydir-data", f"--timeout={patient(180)}s"]
    command = farm.where.command("drain", node.NAME, *options)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as drained:
        closed = ("get", "node", node.NAME, "-o", "jsonpath={.spec.unschedulable}")
        until("kubectl drain to cordon the node", lambda: farm.where.run(*closed) == "true", 10)
        farm.where.run("uncordon", node.NAME)
        said = drained.communicate()[0]
    assert drained.returncode == 0, said
    return said, began


def fewest(farm: Farm, name: str, since: float) -> int:
    """Return the smallest number of ready workers of a pool at a time, without terminating ones."""
    moments = [change.at for change in farm.changes(name) if change.at > since]
    return min(sum(farm.alive(name, at).values()) for at in moments)


def test_a_node_drain_takes_one_worker_of_four_at_a_time_and_loses_nothing(farm: Farm, loads: object) -> None:
    before = farm.ready("drained", 4)
    load = farm.load("drained", 4, "10-20")
    farm.busy("drained", 4)
    said, began = drain(farm, "drained")
    assert "violate the pod's disruption budget" in said
    assert load.begun() == [1, 1, 1, 1]
    assert not set(before) & set(farm.ready("drained", 4))
    assert fewest(farm, "drained", began) == 3


def test_counter_run_without_the_hook_actions_are_killed_and_without_a_budget_all_workers_stop_at_once(
    farm: Farm, loads: object
) -> None:
    farm.ready("bare", 3)
    load = farm.load("bare", 20, "8-12")
    farm.busy("bare", 12)
    went = farm.scale_in("bare", 2)
    assert [how.running for how in went.values()] == [4]
    assert sorted(load.begun()) == [1] * 16 + [2] * 4
    said, began = drain(farm, "bare")
    assert "disruption budget" not in said
    assert fewest(farm, "bare", began) == 0


def assert_nothing_was_lost(farm: Farm, name: str, loaded: Loaded, rounds: int) -> None:
    busy = [how.running for how in loaded.went.values() if how.running]
    times = loaded.begun
    print(
        f"\n{len(times)} actions ended well, {len(times) - times.count(1)} were killed; "
        f"{len(loaded.went)} workers went, {len(busy)} of them running {sum(busy)} actions"
    )
    assert len(times) == 100 * rounds
    assert times.count(1) == len(times), farm.history(name)
    assert len(loaded.went) == 15 * rounds
    assert {how.grace for how in loaded.went.values()} == {GRACE}
    assert len(busy) >= 3 * rounds, "too few of the removed workers were busy to show anything"


@pytest.mark.parametrize("name", ["steady", pytest.param("late", marks=delays)])
def test_scale_ins_lose_nothing(farm: Farm, loads: dict[str, Future[Loaded]], name: str) -> None:
    """Workers of the pool late report an action three seconds after its folder is gone."""
    assert_nothing_was_lost(farm, name, loads[name].result(), 1)


def end_of_an_idle_worker(farm: Farm) -> float:
    """Scale the pool down by its newest worker, and return the seconds until its container ended."""
    old = farm.ready("small", 3)
    farm.scale("small", 4)
    (newest,) = set(farm.ready("small", 4)) - set(old)
    # The timeout ends the command if another worker is removed.
    command = farm.where.command("-n", WORKERS, "logs", "-f", newest, f"--request-timeout={patient(60)}s")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as log:
        assert list(farm.scale_in("small", 3)) == [newest]
        log.wait()
        end = time.monotonic() - farm.told(newest).at
    whole = farm.gone(newest, 60) - farm.told(newest).at
    print(f"\nan idle worker: ended after {end:.1f} s, gone after {whole:.1f} s")
    return end


def test_the_newest_worker_stops_first_and_an_idle_worker_within_ten_seconds(farm: Farm) -> None:
    """The hook needs five seconds, and NativeLink needs one.

    Other tests may slow the machine, so it is enough if one of three workers is in time.
    """
    ends = [end_of_an_idle_worker(farm)]
    while ends[-1] >= 10 and len(ends) < 3:
        ends.append(end_of_an_idle_worker(farm))
    assert 5 <= min(ends) < 10, ends


@pytest.mark.soak
@pytest.mark.parametrize("name", ["steady", pytest.param("late", marks=delays)])
def test_ten_times_as_many_scale_ins_lose_nothing(farm: Farm, name: str) -> None:
    farm.scale(name, MOST)
    farm.ready(name, MOST)
    assert_nothing_was_lost(farm, name, farm.shrink_under_load(name, 10, seed=10), 10)

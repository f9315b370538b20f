"""How long a jump in demand takes to become workers.

Each jump queues 400 actions at once, at a random moment. Two pools follow it: one goes from 4 workers to 200 fake ones
in one step of its HPA, and one goes from no worker to its first, which is real. The cluster is another one than that of
the other tests, because its HPAs sync every 15 s, as a user's do.
"""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from testbed import cluster
from testbed.waiting import until
from testkit import numbers
from testkit.collector import demand
from testkit.farm import FAKE, Farm, await_keda, install, load_images
from testkit.record import Record
from testkit.site import pool
from tests.e2e.scaling.conftest import DOWN_AT_ONCE, SLOTS

LEAST, MOST = 4, 200
JUMP = SLOTS * MOST
FIRST_PODS, ONE_STEP = 3.0, 17.0  # seconds, the targets of the p95
# The pool goes back to 4 at once, for the next jump.
STEADY = {"slots": SLOTS, "min_replicas": LEAST, "max_replicas": MOST, "scale_down": DOWN_AT_ONCE, **FAKE}
POOLS = [
    pool("steady", **STEADY, polling_interval=1),
    pool("idle", min_replicas=0, max_replicas=1, cooldown_period=1, polling_interval=1),
]
RESTS = {"steady": LEAST, "idle": 0}


@dataclass(frozen=True)
class Reaction:
    """The times at which a pool reached each state after a jump, in seconds since its first action was queued."""

    scaled: float  # the Deployment's replicas rose
    created: float  # the first new pod was there
    ready: float  # it was ready
    all_created: float  # as many pods as the Deployment wanted first
    replicas: int  # how many pods that is


def reaction(name: str, jumped: float, deployments: Record, pods: Record) -> Reaction | None:
    """Return how a pool reacted to a jump at a time, or None if not all of its new pods are ready yet."""
    steps = [step for step in deployments.steps(f"nativelink-worker-{name}", jumped) if step[0] >= jumped]
    created, ready = dict[str, float](), dict[str, float]()
    for change in list(pods.changes):
        metadata, conditions = change.object["metadata"], change.object.get("status", {}).get("conditions", ())
        if metadata["labels"].get("nativelink-gitops/pool") != name or change.at < jumped:
            continue
        if change.kind == "ADDED":
            created[metadata["name"]] = change.at
        is_ready = ("Ready", "True") in [(each["type"], each["status"]) for each in conditions]
        if is_ready and metadata["name"] in created:
            ready.setdefault(metadata["name"], change.at)
    moments = sorted((at, pod) for pod, at in created.items())
    wanted = steps[0][1] - RESTS[name] if steps else 1
    if not steps or len(ready) < wanted or moments[0][1] not in ready:
        return None
    first, last = moments[0], moments[wanted - 1]
    found = (steps[0][0], first[0], ready[first[1]], last[0])
    return Reaction(*(moment - jumped for moment in found), replicas=steps[0][1])


def jumps(farm: Farm, count: int) -> Iterator[dict[str, Reaction]]:
    """Make this many jumps, each from rest and at a random moment. Yield the reactions by the names of the pools."""
    with farm.deployments() as deployments, farm.pods() as pods, farm.load(JUMP) as load:

        def resting() -> bool:
            waiting = dict(demand(f"{farm.address('nativelink-collector')}:9464")).get("queue_depth", 0)
            names = (f"nativelink-worker-{name}" for name in RESTS)
            return [deployments.replicas(name) for name in names] == [*RESTS.values()] and not waiting

        for _ in range(count):
            until("the pools to rest", resting, 120)
            time.sleep(random.uniform(0, 15))
            pods.changes.clear()
            jumped = load.hold(JUMP)
            found: dict[str, Reaction] = {}

            def reacted(jumped: float = jumped, found: dict[str, Reaction] = found) -> bool:
                for name in RESTS:
                    if each := reaction(name, jumped, deployments, pods):
                        found[name] = each
                return len(found) == len(RESTS)

            until("the pools to follow a jump", reacted, 300)
            load.hold(0)
            yield found


@pytest.mark.bench
def test_reaction(state: Path, tmp_path: Path, rounds: int) -> None:
    print(f"\n{numbers.machine()}; {rounds} jumps of {JUMP} actions at random moments")
    print("export every second, KEDA's poll every second, HPA sync every 15 s", flush=True)
    found: dict[str, list[Reaction]] = {name: [] for name in RESTS}
    with cluster.fresh("e2e-reaction", nodes=3, real=True) as where:
        load_images(where, "keda", "collector")
        install(where, "keda")
        farm = Farm(where, "reaction", tmp_path)
        variables: dict[str, Any] = {"nativelink_scaling": "keda", "nativelink_metrics_interval": 1}
        farm.apply(POOLS, **variables)
        await_keda(where)
        farm.ready("deployment/nativelink-collector")
        for jump in jumps(farm, rounds):
            for name, each in jump.items():
                found[name].append(each)
            told = (f"{name} {each.created:5.2f} s to {each.replicas}" for name, each in jump.items())
            print(", ".join(told), flush=True)
    idle, steady = found["idle"], found["steady"]
    numbers.head("seconds from the jump")
    numbers.row("idle pool: its first pod", [each.created for each in idle], FIRST_PODS)
    numbers.row("idle pool: its first pod, a real one, is ready", [each.ready for each in idle])
    numbers.row(f"from {LEAST}: the Deployment wants more", [each.scaled for each in steady])
    numbers.row(f"from {LEAST}: {MOST} pods", [each.all_created for each in steady], ONE_STEP)
    steps = sum(each.replicas == MOST for each in steady)
    print(f"from {LEAST} to {MOST} in one step: {steps} of {len(steady)}")

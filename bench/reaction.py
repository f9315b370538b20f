"""Measure the reaction: how long a jump in demand takes to become workers, and how much each link of the chain takes.

The cluster is an embedded one with a real node. Scheduler, collector and KEDA run, and the HPA syncs every 15 s by
default. Each jump queues 400 actions at once, at a random moment. Two pools follow it: one goes from 4 workers to 200
fake ones in one step of its HPA, and one goes from no worker to its first, which is real.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import numbers
from testbed import cluster, components
from testbed.waiting import until
from testkit import chain
from testkit.site import pool

SLOTS, LEAST, MOST = 2, 4, 200
JUMP = SLOTS * MOST
FIRST_PODS, ONE_STEP = 3.0, 17.0  # seconds, the targets of the p95
# The chain that upstream documents, with its defaults: each link's longest time in seconds.
UPSTREAM = {
    "the scheduler exports its metrics (OTLP)": 60,
    "the HPA syncs": 15,
    "and 5 times more, because it doubles: 4, 8, 16, 32, 64, 128, 200": 75,
}
POOLS = [
    pool(
        "steady",
        slots=SLOTS,
        min_replicas=LEAST,
        max_replicas=MOST,
        # The pool goes back to 4 at once, for the next jump.
        scale_down={
            "stabilizationWindowSeconds": 0,
            "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}],
        },
        **chain.FAKE,
    ),
    pool("idle", min_replicas=0, max_replicas=1, cooldown_period=1),
]
RESTS = {"steady": LEAST, "idle": 0}


@dataclass(frozen=True)
class Reaction:
    """The times at which a pool reached each state after a jump, in seconds since its first action was queued."""

    seen: float  # the collector showed all actions
    scaled: float  # the Deployment's replicas rose
    created: float  # the first new pod was there
    bound: float  # it had a node
    ready: float  # it was ready
    all_created: float  # as many pods as the Deployment wanted first
    all_ready: float
    replicas: int  # how many pods that is

    def links(self) -> dict[str, float]:
        """Return the seconds of each link until the first new pod was ready, by link."""
        return {
            "scheduler's export, to the collector's answer": self.seen,
            "KEDA's poll (from zero) or the HPA's sync": self.scaled - self.seen,
            "Deployment and ReplicaSet: first pod": self.created - self.scaled,
            "kube-scheduler": self.bound - self.created,
            "kubelet (idle pool), fake node (the other)": self.ready - self.bound,
        }


@contextmanager
def _entry(interval: int, polling: int) -> Iterator[chain.Entry]:
    """Yield the cluster entry at rest, and remove its cluster afterwards."""
    fresh = cluster.fresh("reaction", nodes=3, real=True)
    with fresh as where, tempfile.TemporaryDirectory(prefix="bench-") as folder:
        entry = chain.Entry(where, "reaction", Path(folder))
        where.load(*components.images_of("keda"), *components.images_of("collector"))
        chain.install_keda(where)
        pools = [each | {"polling_interval": polling} for each in POOLS]
        entry.apply(pools, nativelink_metrics_interval=interval)
        chain.await_keda(where)
        entry.await_ready()
        yield entry


def _condition(pod: dict[str, Any], name: str) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    return any(each["type"] == name and each["status"] == "True" for each in conditions)


def _reaction(name: str, jumped: float, seen: float, deployments: chain.Record, pods: chain.Record) -> Reaction | None:
    """Return how a pool reacted to a jump at a time, or None if it has not reacted yet."""
    steps = [step for step in deployments.steps(f"nativelink-worker-{name}", jumped) if step[0] >= jumped]
    if not steps:
        return None
    new: dict[str, dict[str, float]] = {}
    for change in list(pods.changes):
        metadata = change.object["metadata"]
        if metadata["labels"].get("nativelink-gitops/pool") != name or change.at < jumped:
            continue
        if change.kind == "ADDED":
            new[metadata["name"]] = {"created": change.at}
        reached = new.get(metadata["name"], {"created": 0.0})
        if change.object["spec"].get("nodeName"):
            reached.setdefault("bound", change.at)
        if _condition(change.object, "Ready"):
            reached.setdefault("ready", change.at)
    wanted = steps[0][1] - RESTS[name]
    moments = sorted(new.values(), key=lambda moment: moment["created"])
    ready = sorted(moment["ready"] for moment in moments if "ready" in moment)
    if len(ready) < wanted or "ready" not in moments[0]:
        return None
    first = moments[0]
    found = (seen, steps[0][0], first["created"], first["bound"], first["ready"], moments[wanted - 1]["created"])
    return Reaction(*(moment - jumped for moment in (*found, ready[wanted - 1])), replicas=steps[0][1])


def _jumps(entry: chain.Entry, count: int) -> Iterator[dict[str, Reaction]]:
    """Make this many jumps, each from rest and at a random moment. Yield the reactions by the names of the pools."""
    with entry.deployments() as deployments, entry.pods() as pods, entry.gauge() as gauge, entry.load(JUMP) as load:

        def resting() -> bool:
            names = (f"nativelink-worker-{name}" for name in RESTS)
            return [deployments.replicas(name) for name in names] == [*RESTS.values()] and not gauge.now

        for _ in range(count):
            until("the pools to rest", resting, 120, lambda: f": {gauge.now} actions")
            time.sleep(random.uniform(0, 15))
            pods.changes.clear()
            jumped = load.hold(JUMP)
            found: dict[str, Reaction] = {}

            def reacted(jumped: float = jumped, found: dict[str, Reaction] = found) -> bool:
                seen = next((at for at, value in gauge.values if at > jumped and value and value >= JUMP), None)
                for name in RESTS:
                    if seen and (reaction := _reaction(name, jumped, seen, deployments, pods)):
                        found[name] = reaction
                return len(found) == len(RESTS)

            def details(jumped: float = jumped, found: dict[str, Reaction] = found) -> str:
                steps = {name: deployments.steps(f"nativelink-worker-{name}", jumped) for name in RESTS}
                return f": {[*found]} followed; demand {gauge.now}, {len(pods.changes)} changes of pods, {steps}"

            until("the pools to follow a jump", reacted, 300, details)
            load.hold(0)
            yield found


def main(arguments: list[str]) -> int:
    """Measure and print. Return 1 if a run failed; a high number is not an error."""
    parser = argparse.ArgumentParser(prog="python -m bench reaction", description=__doc__)
    parser.add_argument("--jumps", type=int, default=20)
    parser.add_argument("--export", type=int, default=1, metavar="SECONDS", help="nativelink_metrics_interval")
    parser.add_argument("--poll", type=int, default=1, metavar="SECONDS", help="polling_interval of the pools")
    given = parser.parse_args(arguments)
    print(f"{numbers.machine()}; {given.jumps} jumps of {JUMP} actions at random moments")
    print(f"export every {given.export} s, KEDA's poll every {given.poll} s, HPA sync every 15 s", flush=True)
    found: dict[str, list[Reaction]] = {name: [] for name in RESTS}
    with _entry(given.export, given.poll) as entry:
        for number, jump in enumerate(_jumps(entry, given.jumps), 1):
            for name, reaction in jump.items():
                found[name].append(reaction)
            told = (f"{name} {each.created:5.2f} s to {each.replicas}" for name, each in jump.items())
            print(f"jump {number:3}: {', '.join(told)}", flush=True)
    _print(found["idle"], found["steady"])
    return 0


def _print(idle: list[Reaction], steady: list[Reaction]) -> None:
    print()
    numbers.head("seconds from the jump")
    numbers.row("idle pool: its first pod", [each.created for each in idle], FIRST_PODS)
    numbers.row("idle pool: its first pod, a real one, is ready", [each.ready for each in idle])
    numbers.row(f"from {LEAST}: the Deployment wants more", [each.scaled for each in steady])
    numbers.row(f"from {LEAST}: {MOST} pods", [each.all_created for each in steady], ONE_STEP)
    numbers.row(f"from {LEAST}: {MOST} pods, fake ones, are ready", [each.all_ready for each in steady])
    steps = sum(each.replicas == MOST for each in steady)
    print(f"from {LEAST} to {MOST} in one step: {steps} of {len(steady)}")
    for title, reactions in (("idle pool, first pod", idle), (f"from {LEAST}, first pod", steady)):
        print()
        numbers.head(f"{title}: each link")
        for link in reactions[0].links():
            numbers.row(f"  {link}", [each.links()[link] for each in reactions])
    print(f"\nthe chain that upstream documents, from {LEAST} to {MOST}: seconds at most")
    for link, seconds in {**UPSTREAM, "together": sum(UPSTREAM.values())}.items():
        print(f"  {link:64} {seconds:4}")

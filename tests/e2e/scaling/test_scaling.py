"""Pools that follow the demand on a real node, with scheduler, collector, KEDA and HPA. Most workers are fake.

load.csv has the demand of five minutes. All pools follow the scheduler's demand, so one run of the file shows the pools
with a protection and those without. The HPA syncs every 15 s, or every 20 s on a busy machine, where the demand is also
several seconds late. The file has three dips of 20 s, 50 s apart, so the HPA sees at least one of them, and a window of
50 s bridges all. While the Deployment's status does not have all new workers, the HPA follows each small change.
Therefore the file asks for the maximum and more until then, and its later changes are within the HPA's tolerance of
10 %.
"""

from __future__ import annotations

import csv
import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from testbed import cluster, components
from testbed.cluster import Cluster
from testbed.waiting import patient, until
from testkit import chain
from testkit.chain import FAKE, Entry, Record
from testkit.site import pool

with Path(__file__).with_name("load.csv").open() as file:
    LOAD = [(int(row["seconds"]), int(row["demand"])) for row in csv.DictReader(file)]
LENGTH = LOAD[-1][0]
SLOTS, LEAST, MOST = 2, 4, 200
WINDOW = 50  # seconds of scale-down stabilisation
# seconds until the replicas follow a demand: an export, a sync of the HPA (15 s), and the delay of a busy machine
LAG = 25

DOWN_AT_ONCE = {"policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]}
STEADY = {"stabilizationWindowSeconds": WINDOW, **DOWN_AT_ONCE}
NERVOUS = {"stabilizationWindowSeconds": 0, **DOWN_AT_ONCE}
# The default behaviour of an HPA.
KUBERNETES_UP = {
    "policies": [
        {"type": "Percent", "value": 100, "periodSeconds": 15},
        {"type": "Pods", "value": 4, "periodSeconds": 15},
    ]
}
HILL = pool("hill", slots=SLOTS, min_replicas=LEAST, max_replicas=MOST, scale_down=STEADY, **FAKE)
POOLS = [
    HILL,
    pool("real", min_replicas=0, max_replicas=2, cooldown_period=10, scale_down=STEADY),
    pool("paused", slots=SLOTS, min_replicas=3, max_replicas=MOST, scale_down=STEADY, **FAKE),
    # The counter-runs have at most 40 workers: one without stabilisation, and one with Kubernetes' default scale-up.
    pool("nervous", slots=10, min_replicas=1, max_replicas=40, scale_down=NERVOUS, **FAKE),
    pool("stock", slots=10, min_replicas=1, max_replicas=40, scale_down=STEADY, scale_up=KUBERNETES_UP, **FAKE),
]
PAUSED = "autoscaling.keda.sh/paused"
Steps = list[tuple[float, int]]


@dataclass(frozen=True)
class Played:
    """A run of the load file: its beginning, the demands, and the changes of Deployments and pods.

    ``asked`` has (from, to, demand), in seconds since the beginning. While a demand changes, both the old and the new
    one are in ``asked``.
    """

    began: float
    asked: list[tuple[float, float, int]]
    deployments: Record
    pods: Record

    def steps(self, name: str) -> Steps:
        """Return a pool's replicas as (seconds since the beginning, replicas), first those at the beginning."""
        steps = self.deployments.steps(f"nativelink-worker-{name}", since=self.began)
        return [(at - self.began, replicas) for at, replicas in steps]

    def most_pods(self, name: str) -> int:
        """Return the largest number of pods that a pool had at a time, without terminating pods."""
        alive: set[str] = set()
        most = 0
        for change in self.pods.changes:
            metadata = change.object["metadata"]
            if metadata["labels"].get("nativelink-gitops/pool") == name:
                leaving = change.kind == "DELETED" or "deletionTimestamp" in metadata
                alive = alive - {metadata["name"]} if leaving else alive | {metadata["name"]}
                most = max(most, len(alive))
        return most

    def wanted(self, first: float, last: float) -> list[int]:
        """Return the numbers of workers that the demands between two moments need in the pool hill."""
        demands = [demand for begin, end, demand in self.asked if begin <= last and end >= first]
        return [min(max(-(-demand // SLOTS), LEAST), MOST) for demand in demands]


def follow(entry: Entry, during: Mapping[int, Callable[[], None]] | None = None, rounds: int = 1) -> Played:
    """Play the load file until the pools rest again, and call each function of ``during`` at its second."""
    moments = [(turn * LENGTH + second, demand) for turn in range(rounds) for second, demand in LOAD]
    due: dict[int, Callable[[], None]] = dict(during or {})
    asked: list[tuple[float, float, int]] = []
    with entry.deployments() as deployments, entry.pods() as pods, entry.load() as load:
        began = time.monotonic()
        for second, demand in moments:
            for passed in [moment for moment in due if moment <= second]:
                due.pop(passed)()
            time.sleep(max(0, began + second - time.monotonic()))
            since = time.monotonic() - began
            load.hold(demand)
            if asked:
                asked[-1] = (asked[-1][0], time.monotonic() - began, asked[-1][2])
            asked.append((since, float("inf"), demand))

        def resting() -> bool:
            return [deployments.replicas(f"nativelink-worker-{name}") for name in ("hill", "real")] == [LEAST, 0]

        until("the pools to rest again", resting, 90, lambda: f": {deployments.steps('nativelink-worker-hill')}")
    return Played(began, asked, deployments, pods)


def turns(steps: Steps) -> int:
    """Return how often the replicas turned from growing to shrinking, or back."""
    ways = [after > before for (_, before), (_, after) in itertools.pairwise(steps)]
    return sum(one != other for one, other in itertools.pairwise(ways))


@pytest.fixture(scope="module")
def where(state: Path) -> Iterator[Cluster]:
    with cluster.fresh("e2e-scaling", nodes=3, real=True) as made:
        yield made


@pytest.fixture(scope="module")
def entry(where: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Entry:
    """Apply an entry without demand, wait until its pools rest, and pause one of them."""
    made = Entry(where, "scaling", tmp_path_factory.mktemp("scaling"))
    where.load(*components.images_of("keda"), *components.images_of("collector"))
    chain.install_keda(where)
    made.apply(POOLS)
    chain.await_keda(where)
    made.await_ready()
    for each in POOLS:
        name, least = f"nativelink-worker-{each['name']}", str(each["min_replicas"])

        def resting(name: str = name, least: str = least) -> bool:
            return where.run("-n", made.workers, "get", "deployment", name, "-o", "jsonpath={.spec.replicas}") == least

        until(f"{name} to rest at {least}", resting, 60)
    where.run("-n", made.workers, "annotate", "scaledobject", "nativelink-worker-paused", f"{PAUSED}=true")
    return made


@pytest.fixture(scope="module")
def playing(entry: Entry) -> Iterator[Future[Played]]:
    """Start a run of the load file. In the middle, render the tree with another pool, and apply it."""
    another = pool("another", min_replicas=1, max_replicas=1, **FAKE)
    with ThreadPoolExecutor(1) as background:
        yield background.submit(follow, entry, {90: lambda: entry.apply([*POOLS, another])})


@pytest.fixture(scope="module")
def played(playing: Future[Played]) -> Played:
    played = playing.result(timeout=LENGTH + patient(180))
    for each in POOLS:
        steps = ", ".join(f"{at:.0f} s: {replicas}" for at, replicas in played.steps(each["name"]))
        print(f"\n{each['name']}: {steps}", end="")
    return played


def after_a_restart(entry: Entry) -> list[set[float]]:
    """Kill a scheduler with 100 actions, and return the values that are served after the next one reports its 6."""
    with entry.gauge() as gauge:
        with entry.load() as load:
            load.command.append("--retries=0")  # the actions end with their scheduler
            load.hold(100)
            until("a demand of 100", lambda: gauge.now == 100, 30, lambda: f": it is {gauge.now}")
            scheduler = ("-l", "app.kubernetes.io/component=scheduler")
            entry.where.run("-n", entry.name, "delete", "pod", *scheduler, "--grace-period=1")
        entry.await_ready()
        with entry.load() as load:
            load.hold(6)
            until("a demand of 6", lambda: ("queued", 6) in gauge.lines(), 30, lambda: f": {gauge.lines()}")
            read = []
            while len(read) < 20:
                read.append({value for _, value in gauge.lines()})
                time.sleep(0.5)
    return read


def test_the_demand_of_a_dead_scheduler_is_not_served(playing: Future[Played], where: Cluster, tmp_path: Path) -> None:
    entry = Entry(where, "restart", tmp_path)
    entry.apply([pool("restart", **FAKE)])
    entry.await_ready()
    read = after_a_restart(entry)
    assert all(values == {6, 0} for values in read), read
    # The counter-run: each process has its own series, which stay for a while, and KEDA takes the first line.
    config = tmp_path / "monitoring" / "collector.yaml"
    # The demand is the first of the pipelines.
    text, count = re.subn(r" *- delete_key\(.*service\.instance\.id.*\n", "", config.read_text(), count=1)
    text, times = re.subn(r"metric_expiration: \w+", "metric_expiration: 5m", text, count=1)
    assert (count, times) == (1, 1), text
    config.write_text(text)
    entry.apply_folder()
    entry.await_ready()
    assert all(100 in values for values in after_a_restart(entry))


def test_one_step_from_4_to_200(played: Played) -> None:
    at_first, *later = [replicas for _, replicas in played.steps("hill")]
    assert at_first == LEAST
    up = later[: later.index(MOST) + 1]
    # A second step happens if the HPA syncs while the actions are being queued. Doubling would take six steps.
    assert len(up) <= 2, up
    # The counter-run goes from 1 to 40 in four steps: 5, 10, 20, 40.
    stock = [replicas for _, replicas in played.steps("stock")]
    assert stock.index(max(stock)) >= 4, stock


def test_the_maximum_is_respected(played: Played) -> None:
    assert max(demand for _, demand in LOAD) > SLOTS * MOST, "the file should ask for more than the maximum"
    assert max(replicas for _, replicas in played.steps("hill")) == MOST
    assert played.most_pods("hill") == MOST
    assert max(replicas for _, replicas in played.steps("real")) == 2


def test_up_and_down_once_without_flapping(played: Played) -> None:
    steps = played.steps("hill")
    assert [steps[0][1], steps[-1][1]] == [LEAST, LEAST]
    assert turns(steps) == 1, steps
    for (_, before), (at, after) in itertools.pairwise(steps):
        if after > before:
            assert after <= max(played.wanted(at - LAG, at)), (
                f"{before} to {after} at {at:.1f} s, but no demand needed that many"
            )
        else:
            assert after >= min(played.wanted(at - WINDOW, at)), (
                f"{before} to {after} at {at:.1f} s, but the demand needed more"
            )
    # The counter-run, without a window, also turns at the dips.
    assert turns(played.steps("nervous")) > 1, played.steps("nervous")


def test_from_zero_and_back_to_zero(played: Played) -> None:
    steps = played.steps("real")
    assert [steps[0][1], steps[-1][1]] == [0, 0], steps
    ran = {
        change.object["metadata"]["name"]
        for change in played.pods.changes
        if change.object["spec"].get("nodeName") == "real-1"
        and "deletionTimestamp" not in change.object["metadata"]  # a terminating pod was there before the first demand
        and any(
            condition["type"] == "Ready" and condition["status"] == "True"
            for condition in change.object["status"].get("conditions", ())
        )
    }
    assert len(ran) == 2, "two workers should run on the real node"


def test_a_paused_pool_stays_and_survives_a_render(entry: Entry, played: Played) -> None:
    assert [replicas for _, replicas in played.steps("another")] == [1], "the tree with another pool should be applied"
    assert [replicas for _, replicas in played.steps("paused")] == [3]
    paused = ("-n", entry.workers, "get", "scaledobject", "nativelink-worker-paused", "-o", "json")
    assert f'"{PAUSED}": "true"' in entry.where.run(*paused)


@pytest.mark.soak
def test_half_an_hour_without_flapping(entry: Entry) -> None:
    steps = follow(entry, rounds=6).steps("hill")
    assert turns(steps) == 11, steps  # the pool goes up and down six times
    assert max(replicas for _, replicas in steps) == MOST

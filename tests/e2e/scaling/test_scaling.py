"""Pools that follow the demand on a real node, with scheduler, collector, KEDA and HPA. Most workers are fake.

LOAD has the demand of five minutes. All pools follow the scheduler's demand, so one run of it shows the pools with a
protection and those without. Its three dips of 20 s, 50 s apart, are four syncs of the HPA each. A busy machine, where
the demand is also several seconds late, does not miss them all, and a window of 50 s bridges them. While the
Deployment's status does not have all new workers, the HPA follows each small change. Therefore it asks for the maximum
and more until then, and its later changes are within the HPA's tolerance of 10%. A farm on Redis loses its sources
beside the run.
"""

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from testbed.cluster import Cluster
from testbed.waiting import patient, until
from testkit import nativelink, runbooks
from testkit.farm import FAKE, Farm, secret
from testkit.prometheus import hurry
from testkit.record import Record
from testkit.site import pool
from testkit.trees import resource
from tests.e2e.scaling.conftest import DOWN_AT_ONCE, SLOTS, STATIC, Watched, follower

SECONDS = (0, 8, 20, 40, 60, 80, 88, 98, 110, 130, 138, 148, 160, 180, 200, 210, 220, 230, 238, 246, 300)
DEMANDS = (0, 8, 400, 520, 280, 400, 384, 412, 160, 400, 376, 408, 280, 420, 300, 200, 100, 40, 8, 0, 0)
LOAD = list(zip(SECONDS, DEMANDS, strict=True))
LENGTH = LOAD[-1][0]
LEAST, MOST = 4, 200
WINDOW = 50  # seconds of scale-down stabilisation
# seconds until the replicas follow a demand: an export, a sync of the HPA, and the delay of a busy machine
LAG = 25

STEADY = {**DOWN_AT_ONCE, "stabilizationWindowSeconds": WINDOW}
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
    pool("nervous", slots=10, min_replicas=1, max_replicas=40, scale_down=DOWN_AT_ONCE, **FAKE),
    pool("stock", slots=10, min_replicas=1, max_replicas=40, scale_down=STEADY, scale_up=KUBERNETES_UP, **FAKE),
]
PAUSED = "autoscaling.keda.sh/paused"
Steps = list[tuple[float, int]]


@dataclass(frozen=True)
class Played:
    """A run of the load: its beginning, the demands, and the changes of Deployments and pods.

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


def follow(farm: Farm, during: Mapping[int, Callable[[], None]] | None = None, rounds: int = 1) -> Played:
    """Play the load until the pools rest again, and call each function of ``during`` at its second."""
    moments = [(turn * LENGTH + second, demand) for turn in range(rounds) for second, demand in LOAD]
    due: dict[int, Callable[[], None]] = dict(during or {})
    asked: list[tuple[float, float, int]] = []
    with farm.deployments() as deployments, farm.pods() as pods, farm.load() as load:
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
def farm(where: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Farm:
    """Apply a farm without demand, wait until its pools rest, and pause one of them."""
    made = Farm(where, "scaling", tmp_path_factory.mktemp("scaling"))
    made.apply(POOLS, nativelink_scaling="keda")
    made.ready("deployment/nativelink-collector")
    for each in POOLS:
        name, least = f"nativelink-worker-{each['name']}", str(each["min_replicas"])

        def resting(name: str = name, least: str = least) -> bool:
            return made.run("get", "deployment", name, "-o", "jsonpath={.spec.replicas}") == least

        until(f"{name} to rest at {least}", resting, 60)
    made.run("annotate", "scaledobject", "nativelink-worker-paused", f"{PAUSED}=true")
    return made


@pytest.fixture(scope="module")
def hours() -> tuple[datetime, datetime]:
    """Return when the schedule of a pool begins, in about two minutes, and when it ends."""
    start = (datetime.now(UTC) + timedelta(seconds=150)).replace(second=0, microsecond=0)
    return start, start + timedelta(minutes=2)


@pytest.fixture(scope="module")
def shared(
    where: Cluster, hours: tuple[datetime, datetime], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    """Apply a farm on Redis, whose monitoring takes a tenth of the time that a user's has."""
    farm = Farm(where, "shared", tmp_path_factory.mktemp("shared"))
    where.apply(
        resource("v1/Namespace", "shared"),
        secret("nativelink-redis", "Opaque", {"password": b"of-a-test"}, "shared"),
    )
    start, end = (f"{each:%M %H} * * *" for each in hours)
    schedule = [{"timezone": "UTC", "start": start, "end": end, "replicas": 3}]
    timed = follower("timed", min_replicas=0, cooldown_period=5, schedule=schedule)
    small = {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}}
    farm.apply(
        [follower("small"), follower("large"), follower("careless"), timed],
        nativelink_scaling="keda",
        nativelink_scheduler_backend="redis",
        nativelink_redis_resources=small,
        nativelink_redis_volume_size="1Gi",
        nativelink_prometheus="bundled",
        nativelink_prometheus_scrapes=["cluster"],
        nativelink_prometheus_api_server_ports=[where.port],
    )
    hurry(farm.folder / "rendered")
    farm.apply_folder()
    # The playbook grants what Prometheus may read, but no playbook has run here.
    account = "--serviceaccount=shared:nativelink-prometheus"
    where.run("create", "clusterrolebinding", "prometheus", "--clusterrole=cluster-admin", account)
    farm.ready("statefulset/nativelink-redis", "deployment/nativelink-demand")
    with farm.deployments() as record:
        made = Watched.of(farm, record)
        made.patch("careless", STATIC)
        yield made


@pytest.fixture(scope="module")
def playing(farm: Farm, shared: Watched) -> Iterator[Future[Played]]:
    """Start a run of the load. In the middle, render the tree with another pool, and apply it."""
    pools = [*POOLS, pool("another", min_replicas=1, max_replicas=1, **FAKE)]
    with ThreadPoolExecutor(1) as background:
        yield background.submit(follow, farm, {90: lambda: farm.apply(pools, nativelink_scaling="keda")})


@pytest.fixture(scope="module")
def played(playing: Future[Played]) -> Played:
    played = playing.result(timeout=LENGTH + patient(180))
    for each in POOLS:
        steps = ", ".join(f"{at:.0f} s: {replicas}" for at, replicas in played.steps(each["name"]))
        print(f"\n{each['name']}: {steps}", end="")
    return played


def test_each_pool_follows_its_own_demand_on_redis(shared: Watched, playing: object) -> None:
    def depths() -> dict[str, float]:
        """Return the queue depth of each pool in Prometheus. A series without a pool has the name ""."""
        found = shared.series("nativelink_scheduler_queue_depth")
        return {each["metric"].get("pool", ""): float(each["value"][1]) for each in found}

    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        # The first four take a worker each, because it has one CPU for its two slots.
        for name, actions, asked in (("small", 4, {"cpu_count": "1"}), ("careless", 12, {}), ("no-pool-has-it", 3, {})):
            load = stack.enter_context(shared.load(pool=name, **asked))
            load.hold(actions)
        shared.become(small=4, careless=6)
        assert shared.moved("large", began) == [1]
        recorded = {"small": 8.0, "large": 0.0, "careless": 12.0, "timed": 0.0, "(unmatched)": 3.0}
        until(f"Prometheus to have {recorded}", lambda: depths() == recorded, 30)
        shared.fires("ActionsUnmatched")
        alerts = {"deployment/nativelink-demand": "DemandLost", "statefulset/nativelink-redis": "RedisDown"}
        for lost, alert in alerts.items():
            with shared.without(lost, killed=True) as gone:
                shared.fires(alert)
                shared.become(careless=2, seconds=90)
                assert shared.moved("small", gone) == [4], lost
                assert shared.moved("large", gone) == [1], lost
            shared.become(small=4, careless=6, seconds=90)
    shared.become(small=1, careless=1)


def test_the_commands_of_the_runbooks_run(shared: Watched, playing: object) -> None:
    with shared.load(pool="no-pool-has-it") as load:
        load.hold(1)
        assert runbooks.run(shared.where, "redis", name="shared") == ""


def test_a_full_redis_is_noticed(shared: Watched, playing: object) -> None:
    client = ("-n", "shared", "exec", "nativelink-redis-0", "--", "/opt/redis-stack/bin/redis-cli", "-e")
    each = "for number = 1, 6 do redis.call({}) end"
    fill, empty = each.format("'SET', number, string.rep('x', 10485760)"), each.format("'DEL', number")
    _, limit = shared.where.run(*client, "CONFIG", "GET", "maxmemory").split()
    # A small limit, because a full one would take hundreds of megabytes of this machine.
    shared.where.run(*client, "EVAL", fill, "0")
    shared.where.run(*client, "CONFIG", "SET", "maxmemory", "64mb")
    shared.fires("RedisFull")
    shared.where.run(*client, "EVAL", empty, "0")
    shared.where.run(*client, "CONFIG", "SET", "maxmemory", limit)
    shared.ended("RedisFull")


def test_a_dead_matching_loop_is_noticed(shared: Watched, playing: object) -> None:
    """Without its guard a scheduler on Redis takes actions and never runs one. This test leaves it so."""

    def fires() -> bool:
        return "SchedulerLoopDead" in shared.firing()

    def matches(pod: str) -> bool:
        return shared.series(f'nativelink_scheduler_matching_passes_total{{pod="{pod}"}} > 0') != []

    container = {
        "name": "nativelink",
        "command": ["/shared/nativelink", "/config/scheduler.json5"],
        "env": [{"name": "NATIVELINK_STANDIN_DEAD_STARTS", "value": "100"}],
        "startupProbe": None,
    }
    patch = json.dumps({"spec": {"template": {"spec": {"containers": [container]}}}})
    scheduler = "deployment/nativelink-scheduler"
    shared.where.run("-n", "shared", "patch", scheduler, "--type=strategic", "-p", patch)
    for _ in range(10 if nativelink.SAVED else 1):  # half of the original's starts are dead
        shared.where.rolled_out("shared", scheduler)
        new = shared.only_scheduler()
        with shared.load(pool="small") as load:
            load.hold(1)  # a call that the new scheduler counts
        until("the alert, or a loop that matches", lambda new=new: fires() or matches(new), 90)  # type: ignore[misc]
        if fires():
            return
        shared.where.run("-n", "shared", "rollout", "restart", scheduler)
    raise AssertionError("the alert did not fire")


def test_a_schedule_adds_workers_in_its_hours_only(shared: Watched, hours: tuple[datetime, datetime]) -> None:
    """The pool has no demand. While its source is lost, it has one worker, or keeps those that it has."""
    start, end = (time.monotonic() + (each - datetime.now(UTC)).total_seconds() for each in hours)
    until("the end of the schedule", lambda: time.monotonic() > end, 300)
    shared.become(timed=0, seconds=90)
    steps = shared.record.steps("nativelink-worker-timed")
    (came,) = [at for at, replicas in steps if replicas == 3]
    left = next(at for at, _ in steps if at > came)
    assert start <= came < start + LAG, steps
    assert end <= left, steps
    assert {replicas for _, replicas in steps} <= {0, 1, 3}, steps


def test_one_step_from_4_to_200(played: Played) -> None:
    at_first, *later = [replicas for _, replicas in played.steps("hill")]
    assert at_first == LEAST
    up = later[: later.index(MOST) + 1]
    # More steps happen if the HPA syncs while the actions are being queued, which a busy machine takes long for.
    # Doubling would take six steps.
    assert len(up) <= 4, up
    # The counter-run goes from 1 to 40 in four steps: 5, 10, 20, 40.
    stock = [replicas for _, replicas in played.steps("stock")]
    assert stock.index(max(stock)) >= 4, stock


def test_the_maximum_is_respected(played: Played) -> None:
    assert max(demand for _, demand in LOAD) > SLOTS * MOST, "the load should ask for more than the maximum"
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


def test_a_paused_pool_stays_and_survives_a_render(farm: Farm, played: Played) -> None:
    assert [replicas for _, replicas in played.steps("another")] == [1], "the tree with another pool should be applied"
    assert [replicas for _, replicas in played.steps("paused")] == [3]
    paused = ("-n", farm.workers, "get", "scaledobject", "nativelink-worker-paused", "-o", "json")
    assert f'"{PAUSED}": "true"' in farm.where.run(*paused)


@pytest.mark.soak
def test_half_an_hour_without_flapping(farm: Farm) -> None:
    steps = follow(farm, rounds=10).steps("hill")
    assert turns(steps) == 19, steps  # the pool goes up and down ten times
    assert max(replicas for _, replicas in steps) == MOST

"""The rendered scripts for the demand and for the housekeeping, run in a real Redis."""

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render

from testbed.waiting import until
from testkit.redis import Redis
from testkit.trees import values_of

INDEX = "aa__state_sort_key_3e762c15"
POOLS = [
    {"name": "small", "platform_properties": {"pool": "small"}},
    {"name": "unmatched", "platform_properties": {"pool": "large"}},  # a pool may have this name
]
FILES = render.tree(values_of(nativelink_scheduler_backend="redis", nativelink_worker_pools=POOLS))
DEMAND, HOUSEKEEPING = FILES["monitoring/demand.lua"], FILES["scheduler/housekeeping.lua"]
KINDS = ("queued", "executing", "demand")
NOTHING = {f"{pool}:{kind}": 0 for pool in ("small", "unmatched", "(unmatched)") for kind in KINDS}


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    made = Redis(tmp_path)
    yield made
    made.stop()


def act(redis: Redis, count: int, state: str, **properties: str) -> list[str]:
    """Write actions as NativeLink v1.6.6 does, as far as the scripts read them. Return their operations."""
    if INDEX not in redis.run("FT._LIST"):
        redis.run("FT.CREATE", INDEX, "PREFIX", "1", "aa_", "SCHEMA", "state", "TAG", "CASESENSITIVE", "SORTABLE")
    operations = [str(uuid.uuid4()) for _ in range(count)]
    data = json.dumps({"version": 1, "action_info": {"platform_properties": properties, "priority": 0}})
    redis.send([("HSET", f"aa_{name}", "state", state, "version", "1", "data", data) for name in operations])
    return operations


def demand(redis: Redis, script: str = DEMAND) -> dict[str, int]:
    lines = redis.run("EVAL", script, "0").splitlines()
    return dict(zip(lines[::2], map(int, lines[1::2]), strict=True))


def test_each_action_counts_for_its_pool_or_as_unmatched(redis: Redis) -> None:
    assert demand(redis) == NOTHING
    redis.run("FLUSHALL")
    act(redis, 3, "queued", pool="small")
    act(redis, 2, "executing", pool="large")
    act(redis, 4, "queued", pool="nowhere")
    act(redis, 1, "queued", cpu_count="1000", pool="small")
    act(redis, 5, "completed", pool="small")
    assert demand(redis) == NOTHING | {
        **{"small:queued": 3, "small:demand": 3, "unmatched:executing": 2, "unmatched:demand": 2},
        **{"(unmatched):queued": 5, "(unmatched):demand": 5},
    }


def test_the_demand_has_the_slots_of_what_actions_reserve(redis: Redis) -> None:
    """A worker has four slots, 2 CPUs, 3 GPUs, and a disk of 4."""
    properties = {"cpu_count": 2, "gpu": 3, "disk": 4}
    pools = [{"name": "small", "slots": 4, "platform_properties": properties}]
    kinds = {"nativelink_scheduler_platform_properties": dict.fromkeys(properties, "minimum")}
    values = values_of(nativelink_scheduler_backend="redis", nativelink_worker_pools=pools, **kinds)
    script = render.tree(values)["monitoring/demand.lua"]

    def counted(*actions: tuple[int, dict[str, str]], script: str = script) -> int:
        redis.run("FLUSHALL")
        for index, (count, asked) in enumerate(actions):
            act(redis, count, ("queued", "executing")[index % 2], **asked)
        return demand(redis, script)["small:demand"]

    assert counted((4, {})) == 4
    assert counted((4, {"cpu_count": "0"})) == 4
    assert counted((4, {"cpu_count": "1"})) == 8
    assert counted((4, {"cpu_count": "2"})) == 16
    # Others have the slots that such actions leave, and the GPUs.
    assert counted((4, {"cpu_count": "2"}), (12, {}), (6, {"gpu": "1"})) == 22
    assert counted((4, {"cpu_count": "2"}), (12, {"gpu": "1"})) == 16
    assert counted((3, {"gpu": "1"}), (3, {"gpu": "1"}), (3, {"gpu": "1"})) == 12  # thirds of a worker
    assert counted((2, {"disk": "3"})) == 8  # a worker has room for one
    # The counter-run counts actions alone.
    assert script.count("reserve(pool, properties)") == 2
    blind = script.replace("        reserve(pool, properties)\n", "")
    assert counted((4, {"cpu_count": "2"}), script=blind) == 4


def test_the_script_counts_once_a_second_for_any_number_of_callers(redis: Redis) -> None:
    act(redis, 10, "queued", pool="small")
    began = time.monotonic()
    assert {demand(redis)["small:queued"] for _ in range(50)} == {10}
    assert redis.calls("FT.SEARCH") <= 2 + (time.monotonic() - began)
    act(redis, 5, "queued", pool="small")
    until("the next count", lambda: demand(redis)["small:queued"] == 15, 5)
    # The script of another inventory does not return this count.
    others = render.tree(values_of(nativelink_scheduler_backend="redis"))["monitoring/demand.lua"]
    assert demand(redis, others)["(unmatched):queued"] == 15


def test_without_the_remembered_count_the_script_counts_each_time(redis: Redis) -> None:
    """The counter-run of the test above takes the remembered count out of the script."""
    act(redis, 10, "queued", pool="small")
    for _ in range(20):
        demand(redis, DEMAND.replace("if counted then", "if false then"))
    assert redis.calls("FT.SEARCH") == 20


def test_a_count_of_many_actions_is_remembered_for_longer(redis: Redis) -> None:
    act(redis, 20_000, "queued", pool="small")
    # Redis itself says it at once: on a busy machine the count may be gone before a second command asks.
    left = redis.run("EVAL", DEMAND.replace("\nreturn answer", '\nreturn redis.call("PTTL", cache)'), "0")
    assert 2900 < int(left) <= 3000
    assert demand(redis)["small:queued"] == 20_000


def test_beyond_its_bound_the_script_never_counts_too_few(redis: Redis) -> None:
    act(redis, 180, "queued", pool="small")
    act(redis, 70, "queued", pool="large")
    assert "100000" in DEMAND
    found = demand(redis, DEMAND.replace("100000", "100"))
    assert 250 <= found["small:queued"] + found["unmatched:queued"] <= 252  # the count of each pool is rounded up


def test_a_full_redis_is_counted_too(redis: Redis) -> None:
    act(redis, 3, "queued", pool="small")
    redis.run("CONFIG", "SET", "maxmemory", "1")
    assert "OOM" in redis.run("SET", "a", "b", check=False)
    assert demand(redis)["small:queued"] == 3


# The housekeeping ----------------------------------------------------------------------------------------------------


def keep_house(redis: Redis) -> None:
    """Run the script until it has seen every key."""
    cursor = "0"
    while True:
        cursor = redis.run("EVAL", HOUSEKEEPING, "0", cursor)
        if cursor == "0":
            return


def leave(redis: Redis, operations: list[str]) -> list[str]:
    """Write what NativeLink writes beside an action; return the clients' operations."""
    clients = [str(uuid.uuid4()) for _ in operations]
    redis.send([("HSET", f"ck_{name}", "data", "1795666766") for name in operations])
    redis.send(
        [
            ("HSET", f"cid_{client}", "data", json.dumps({"Uuid": name}, separators=(",", ":")))
            for client, name in zip(clients, operations, strict=True)
        ]
    )
    return clients


def test_only_the_keys_of_an_action_are_removed_with_it(redis: Redis) -> None:
    living, gone = act(redis, 1, "executing") + act(redis, 1, "completed"), [str(uuid.uuid4())]
    clients = leave(redis, living)
    leave(redis, gone)
    foreign = ["ck_of-another-program", f"other_{gone[0]}"]
    redis.send([("HSET", name, "data", "1") for name in foreign])
    keep_house(redis)
    kept = {f"{kind}_{name}" for name in living for kind in ("aa", "ck")} | {f"cid_{name}" for name in clients}
    assert set(redis.run("KEYS", "*").splitlines()) == kept | set(foreign)


@pytest.mark.parametrize(("kept", "left"), [(True, 0), (False, 40_000)], ids=["housekeeping", "without"])
def test_redis_does_not_grow(redis: Redis, kept: bool, left: int) -> None:
    """Twenty thousand operations come and go, a thousand at a time. The counter-run is without the housekeeping."""
    for _ in range(20):
        operations = act(redis, 1000, "completed")
        leave(redis, operations)
        redis.send([("DEL", f"aa_{name}") for name in operations])  # as their time to live does
        if kept:
            keep_house(redis)
    assert int(redis.run("DBSIZE")) == left

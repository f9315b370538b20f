"""Measure what counting the demand costs Redis, compared with the same script without its cached count.

``--actions`` is the number of live actions. ``--pools`` is the number of pools, each of which asks twice a second, as
KEDA does, for ``--seconds``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import uuid
from pathlib import Path

from ansible_collections.nativelink.gitops.plugins.plugin_utils import render

from testkit import numbers
from testkit.redis import Redis
from testkit.trees import values_of

INDEX = "aa__state_sort_key_3e762c15"
# The document of an action has about this size in v1.6.6.
REST = "x" * 1200


def main(arguments: list[str]) -> int:
    """Print the time that Redis spends on the script, as a percentage of the time that passed."""
    parser = argparse.ArgumentParser(prog="python -m bench demand", description=__doc__)
    parser.add_argument("--actions", type=int, nargs="+", default=[100, 10_000])
    parser.add_argument("--pools", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--seconds", type=float, default=10)
    wanted = parser.parse_args(arguments)
    script = render.tree(values_of(nativelink_scheduler_backend="redis"))["monitoring/demand.lua"]
    uncached = script.replace("if counted then", "if false then")
    assert uncached != script
    print(numbers.machine())
    print(
        f"{'live actions':>12} {'pools':>6} {'Redis busy, %':>14} {'without the cache, %':>21} {'ratio':>6}", flush=True
    )
    with tempfile.TemporaryDirectory() as folder:
        redis = Redis(Path(folder))
        try:
            redis.run("FT.CREATE", INDEX, "PREFIX", "1", "aa_", "SCHEMA", "state", "TAG", "SORTABLE")
            there = 0
            for actions in sorted(wanted.actions):
                redis.send([_action() for _ in range(actions - there)])
                there = actions
                for pools in wanted.pools:
                    ours, theirs = (_busy(redis, each, pools * 2, wanted.seconds) for each in (script, uncached))
                    print(f"{actions:12} {pools:6} {ours:14.2f} {theirs:21.2f} {theirs / ours:6.1f}", flush=True)
        finally:
            redis.stop()
    return 0


def _action() -> tuple[str, ...]:
    data = {"action_info": {"platform_properties": {"pool": "default"}}, "rest": REST}
    return ("HSET", f"aa_{uuid.uuid4()}", "state", "queued", "version", "1", "data", json.dumps(data))


def _busy(redis: Redis, script: str, asked: int, seconds: float) -> float:
    """Return the percentage of its time that Redis spends on a script that runs this often a second."""
    redis.run("CONFIG", "RESETSTAT")
    began = time.monotonic()
    turn = 0
    while (now := time.monotonic()) < began + seconds:
        redis.run("EVAL", script, "0")
        turn += 1
        time.sleep(max(0.0, began + turn / asked - now))
    return redis.spent("eval") / (time.monotonic() - began) * 100

"""Measures load: how many actions a second one scheduler starts, and what a user of its own costs an action.

Client, scheduler, CAS and workers share this machine, so the rates depend on it. The processor time that each of them
uses for an action does not. Each run has its own farm. Numbers of a machine that is not idle are too high.
"""

import json
import os
import statistics
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import pytest

from conformance.farm import Farm, Tell, pool, succeeded
from conformance.pods import Pod
from testkit.numbers import machine

_GOAL = 10  # ms more at the median for an action with a user of its own
_TICKS = os.sysconf("SC_CLK_TCK")
_TRIVIAL = f"--command={json.dumps(['/bin/sh', '-c', ': {salt} {index}'])}"


@pytest.mark.parametrize(
    ("actions", "workers", "backend"),
    [(5000, 200, "memory"), (5000, 20, "memory"), (500, 200, "memory"), (500, 200, "redis")],
)
def test_load(new_farm: Callable[..., Farm], actions: int, workers: int, backend: str, tell: Tell) -> None:
    """{actions} actions on {workers} workers, queue in {backend}"""
    pools = [pool("default", workers)]
    with new_farm(nativelink_worker_pools=pools, nativelink_scheduler_backend=backend) as farm:
        parts = {"scheduler": [farm.scheduler], "CAS": farm.cas, "workers": farm.workers["default"]}
        before, idle = {name: _processor(pods) for name, pods in parts.items()}, _memory(farm.scheduler)
        report = succeeded(farm.load(_TRIVIAL, f"--actions={actions}", f"--concurrency={actions}", "--timeout=1800"))
        used = {name: 1000 * (_processor(pods) - before[name]) / actions for name, pods in parts.items()}
        memory = _memory(farm.scheduler)
    moments = sorted(each["moments"]["executionStart"] for each in report)
    first, last = actions // 10, actions * 9 // 10
    tell(
        f"{(last - first) / (moments[last] - moments[first]):.0f} actions a second; processor ms an action: "
        + ", ".join(f"{name} {value:.1f}" for name, value in used.items())
        + f"; scheduler's memory: {idle:.0f} MiB, then {memory:.0f}; {machine()}"
    )


@pytest.mark.parametrize(("inputs", "actions"), [(1, 40), (50, 40), (2000, 20)])
def test_isolation(new_farm: Callable[..., Farm], inputs: int, actions: int, tell: Tell) -> None:
    """a user of its own for an action of {inputs} inputs

    Two farms run beside each other, and their actions alternate. Inputs are in the workers' stores before.
    """
    pools = [pool("default", 1)]
    users, none = (
        new_farm(nativelink_worker_pools=pools, nativelink_worker_isolation=level) for level in ("users", "none")
    )
    with users, none:
        took: dict[Farm, list[float]] = {users: [], none: []}
        for turn in range(actions // 5 + 1):
            for farm, numbers in took.items():
                numbers += _milliseconds(farm, inputs, 5 if turn else 1)
        ours, theirs = (statistics.median(numbers[1:]) for numbers in took.values())
    missed = ", missed" if ours - theirs > _GOAL else ""
    tell(
        f"{ours:.1f} ms at the median, {theirs:.1f} without: {ours - theirs:+.1f} (goal: {_GOAL}{missed}); {machine()}"
    )


def _milliseconds(farm: Farm, inputs: int, actions: int) -> list[float]:
    """Run actions one after another. Return how long the worker took for each, by its own clock."""
    files = [f"--input=input-{number}={number} of {inputs}" for number in range(inputs)]
    report = farm.load(*files, _TRIVIAL, f"--actions={actions}", "--concurrency=1", "--timeout=600")
    moments = [each["moments"] for each in succeeded(report)]
    return [1000 * (each["outputUploadStart"] - each["inputFetchStart"]) for each in moments]


def _processes(pods: Iterable[Pod]) -> dict[Path, list[str]]:
    """Return the fields of /proc/PID/stat, from the third on, of all processes of pods. Each pod is a session."""
    sessions = {str(pod.process.pid) for pod in pods if pod.process}
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            fields = path.read_text().rpartition(")")[2].split()
            if fields[3] in sessions:
                found[path] = fields
    return found


def _processor(pods: Iterable[Pod]) -> float:
    """Return the seconds of processor time that pods used, including their children that have ended."""
    return sum(int(value) for fields in _processes(pods).values() for value in fields[11:15]) / _TICKS


def _memory(pod: Pod) -> float:
    """Return the MiB that the largest process of a pod, which is NativeLink, had at most so far."""
    statuses = (path.with_name("status").read_text().splitlines() for path in _processes([pod]))
    return max(int(line.split()[1]) / 1024 for lines in statuses for line in lines if line.startswith("VmHWM:"))

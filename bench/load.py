"""Measure load: how many actions a second one scheduler starts, and how many requests a CAS of three pods answers.

A real NativeLink runs the rendered configurations as processes (docs/conformance.md). NATIVELINK=FILE or a FILE names
it. Each run has its own farm. Client, scheduler, CAS and workers share this machine, so the rates depend on it. The
processor time that each of them uses for an action does not.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import json5

from bench import numbers, processes
from conformance.farm import Farm, pool, running
from conformance.plan import Plan
from conformance.pods import Network, Pod
from conformance.subject import Subject

WORKERS, FEW, ACTIONS = 200, 20, 5000
ON_REDIS = 500  # actions; more would take too long
_TICKS = os.sysconf("SC_CLK_TCK")
_ANY = {"pool": "default"}
_NONE = {"pool": "unknown"}
_TRIVIAL = json.dumps(["/bin/sh", "-c", ": {salt} {index}"])


@dataclass(frozen=True)
class Run:
    """A farm, and the load on it."""

    title: str
    workers: int = WORKERS
    actions: int = ACTIONS
    waiting: int = 0  # additional actions that no worker can run
    redis: bool = False
    lookup: bool = True  # the scheduler looks into the action cache first


RUNS = (
    Run(f"{WORKERS} workers"),
    Run(f"{FEW} workers", workers=FEW),
    Run("without cache_lookup", lookup=False),
    Run("as many more that no worker can run", waiting=ACTIONS),
    Run("500 actions", actions=ON_REDIS),
    Run("500 actions, Redis", actions=ON_REDIS, redis=True),
)

# The ways to the CAS: instance, port, number of clients with one request each, and True if kernels acknowledge at once.
WAYS = {
    "the shards, 32 clients": ("main", 50051, 32, False),
    "a slice, 32": ("slice", 50052, 32, False),
    "the shards, 512": ("main", 50051, 512, False),
    "the shards, 32, quick": ("main", 50051, 32, True),
}


@dataclass(frozen=True)
class Load:
    """The result of a run: times in seconds, processor times in seconds per 1,000 actions, memory in MiB."""

    seconds: float  # until the last action was reported, without uploading them
    rate: float  # actions begun a second, from the tenth percent to the ninetieth
    scheduler: float  # processor time
    cas: float
    workers: float
    client: float
    busy: float  # share of the machine's processors
    idle_memory: float  # of the scheduler before the load
    memory: float  # of the scheduler at most


def main(arguments: list[str] | None = None) -> int:
    """Measure and print. Return 1 if a run failed, and 2 without a NativeLink or namespaces."""
    parser = processes.parser("load", __doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="run only those whose names contain TEXT")
    given = parser.parse_args(arguments)
    return processes.run("load", given.file, given.only)


def inside(plan: Plan) -> int:
    """Measure and print, inside of the namespaces. Return 1 if a run failed."""
    (under_test,) = plan.subjects
    network = Network(plan.folder)
    print(
        f"{numbers.machine()}; NativeLink {under_test.title}; {ACTIONS} actions that do nothing, {WORKERS} workers of 8"
    )
    print("processor seconds are for 1,000 actions; memory is the scheduler's, in MiB, idle and at most\n")
    columns = ("a second", "scheduler", "CAS x3", "workers", "client")
    print(
        f"{'':34} {'s':>7} {' '.join(f'{each:>9}' for each in columns)} {'busy':>6} {'idle':>6} {'most':>6}", flush=True
    )
    rates: dict[str, float] = {}
    for number, run in enumerate(each for each in RUNS if plan.only in each.title):
        if run.redis and not plan.tools.redis:
            print(f"{run.title:34} not measured: no Redis: {plan.tools.missing['redis']}")
            continue
        with _farm(run, under_test, plan, network, plan.folder / f"run-{number}") as farm:
            found = _load(run, farm)
            rates[run.title] = found.rate
            times = (found.scheduler, found.cas, found.workers, found.client)
            print(
                f"{run.title:34} {found.seconds:7.1f} {found.rate:9.1f} {' '.join(f'{each:9.2f}' for each in times)}"
                f" {found.busy:6.0%} {found.idle_memory:6.0f} {found.memory:6.0f}",
                flush=True,
            )
    _ratios(rates)
    if plan.only in "CAS":
        with _farm(replace(RUNS[0], workers=1), under_test, plan, network, plan.folder / "cas") as farm:
            _cas(farm)
    return 0


def _ratios(rates: dict[str, float]) -> None:
    first = RUNS[0].title
    pairs = [(each.title, "500 actions" if each.redis else first) for each in RUNS[1:] if each.title != "500 actions"]
    print()
    for one, other in pairs:
        if one in rates and other in rates:
            print(f"actions a second, {one} / {other}: {rates[one] / rates[other]:.2f}")


@contextlib.contextmanager
def _farm(run: Run, under_test: Subject, plan: Plan, network: Network, folder: Path) -> Iterator[Farm]:
    variables: dict[str, Any] = {"nativelink_worker_pools": [pool("default", run.workers)]}
    if run.redis:
        variables["nativelink_scheduler_backend"] = "redis"
    farm = Farm(under_test, plan.tools, network, folder, variables)
    if not run.lookup:
        farm.scheduler.configure(_without_lookup)
    with farm:
        yield farm


def _without_lookup(settings: str) -> str:
    """Return the scheduler's configuration with its cache_lookup replaced by the scheduler that it wraps."""
    parsed = json5.loads(settings)
    parsed["schedulers"] = [
        {"name": each["name"], **each["cache_lookup"]["scheduler"]} if "cache_lookup" in each else each
        for each in parsed["schedulers"]
    ]
    return json.dumps(parsed)


def _load(run: Run, farm: Farm) -> Load:
    idle = _memory(farm.scheduler)
    arguments = (f"--actions={run.actions}", f"--concurrency={run.actions}", "--timeout=1800")
    with _waiting(run.waiting, farm):
        parts: dict[str, Iterable[Pod]] = {
            "scheduler": [farm.scheduler],
            "cas": farm.cas,
            "workers": farm.workers["default"],
        }
        before = {name: _processor(pods) for name, pods in parts.items()}
        client, machine, began = _children(), _machine(), time.monotonic()
        report = farm.load(f"--command={_TRIVIAL}", *arguments, platform=_ANY)
        seconds = time.monotonic() - began
        used = {name: 1000 * (_processor(pods) - before[name]) / run.actions for name, pods in parts.items()}
        client, machine = _children() - client, _machine() - machine
    if report["failed"]:
        raise SystemExit(f"{report['failed']} actions failed: {report['actions'][0]}")
    moments = sorted(each["began"] for each in report["actions"])
    first, last = run.actions // 10, run.actions * 9 // 10
    return Load(
        seconds=max(each["seconds"] for each in report["actions"]),
        rate=(last - first) / (moments[last] - moments[first]),
        **used,
        client=1000 * client / run.actions,
        busy=machine / seconds / (os.cpu_count() or 1),
        idle_memory=idle,
        memory=_memory(farm.scheduler, "VmHWM"),
    )


@contextlib.contextmanager
def _waiting(actions: int, farm: Farm) -> Iterator[None]:
    """Keep this many actions, which no worker can run, waiting in the scheduler."""
    if not actions:
        yield
        return
    arguments = (f"--actions={actions}", f"--concurrency={actions}", "--hold=3600", "--timeout=3600")
    with running(farm.client(*arguments, platform=_NONE)) as client:
        assert client.stdout
        for word in ("uploaded", "queued"):
            told = client.stdout.readline()
            if word not in told:
                raise SystemExit(f"the client should have {actions} {word}, but printed {told!r}")
        yield


def _processes(pods: Iterable[Pod]) -> dict[int, list[str]]:
    """Return the fields of /proc/PID/stat, from the third on, of all processes of pods. Each pod is a session."""
    sessions = {str(pod.process.pid) for pod in pods if pod.process}
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if fields[3] in sessions:
                found[int(path.parent.name)] = fields
    return found


def _processor(pods: Iterable[Pod]) -> float:
    """Return the seconds of processor time that pods used, including their children that have ended."""
    return sum(int(value) for fields in _processes(pods).values() for value in fields[11:15]) / _TICKS


def _children() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _machine() -> float:
    """Return the seconds of processor time that all processes used since the machine started."""
    user, nice, system, _, _, irq, soft = (int(each) for each in Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + soft) / _TICKS


def _memory(pod: Pod, field: str = "VmRSS") -> float:
    """Return the MiB of the largest process of a pod, which is NativeLink."""
    sizes = []
    for process in _processes([pod]):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
            sizes += [int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:")]
    return max(sizes)


def _cas(farm: Farm) -> None:
    """Print the rates of one CAS pod: of its slice alone, and of its public listener, which asks all slices."""
    print("\nCAS: requests a second (p50 in ms; milliseconds of the CAS' processors for each)")
    print(f"{'':30} {' '.join(f'{each:>24}' for each in WAYS)}")
    rows: dict[str, list[str]] = {}
    rates: dict[str, dict[str, float]] = {}
    for way, (instance, port, clients, quick) in WAYS.items():
        if quick:
            _acknowledge_at_once(farm)
        endpoint = f"--cas-endpoint=grpc://{farm.cas[0].address}:{port}"
        command = [farm.tools.reapi_load, "cas", endpoint, f"--instance={instance}", f"--concurrency={clients}"]
        before = _processor(farm.cas)
        with running([*command, "--seconds=6"]) as client:
            for line in client.stdout or ():
                rate = json.loads(line)
                after = _processor(farm.cas)
                each, before = 1000 * (after - before) / rate["requests"], after
                rates.setdefault(way, {})[rate["kind"]] = rate["per_second"]
                shown = f"{rate['per_second']:.0f} ({rate['p50_ms']:.0f}; {each:.2f})"
                rows.setdefault(rate["kind"], []).append(shown)
    for kind, row in rows.items():
        print(f"{kind:30} {' '.join(f'{each:>24}' for each in row)}", flush=True)
    first, *others = WAYS
    for way in others:
        ratio = statistics.geometric_mean(rates[way][kind] / rates[first][kind] for kind in rates[first])
        print(f"requests a second, {way} / {first}, geometric mean: {ratio:.2f}")


def _acknowledge_at_once(farm: Farm) -> None:
    """Make the kernels of clients and pods acknowledge at once what they receive (docs/benchmarks.md)."""
    route = ["ip", "route", "replace", "10.77.0.0/16", "quickack", "1", "dev"]
    subprocess.run([*route, "pods"], check=True)
    for pod in farm.cas:
        subprocess.run(["nsenter", f"--net=/run/netns/{pod.namespace}", *route, "eth0"], check=True)


if __name__ == "__main__":
    sys.exit(inside(Plan.read(Path(sys.argv[2]))))

"""Measure latency: of small reads and writes, and of builds of small actions, by the way to the CAS.

The cluster is an embedded one with a real node and its edge. It has two CAS pods, a scheduler and two workers of 8
slots. One run measures three ways:

- "public listener": scheduler and workers use the public listener of the CAS, as older trees did;
- "slices": they reach the slices directly, as it is rendered;
- "slices, low latency": the same with low latency of the role node_agent.

NativeLink is the original if TESTBED_IMAGES has it (testbed/README.md). Otherwise it is the stand-in, which then leaves
Nagle's algorithm on, as the original does.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import json5

from bench import numbers
from testbed import build, components
from testbed.waiting import until
from testkit import chain, edge, nativelink
from testkit.bazel import ACTION, Bazel
from testkit.edge import CAS, Edge
from testkit.site import pool

PLAIN, DIRECT, LOW = "public listener", "slices", "slices, low latency"
WORKERS = "nativelink-workers"
WORKLOADS = (
    (CAS, "statefulset/nativelink-cas"),
    (CAS, "deployment/nativelink-scheduler"),
    (WORKERS, "deployment/nativelink-worker-default"),
)
# The targets of the dependent actions, as shares of the time that they take on the first way. That of the slices is for
# the original; the stand-in with Nagle's algorithm need not reach it.
TARGETS = {DIRECT: 0.6, LOW: 0.2}
OVERHEAD = 60.0  # ms, the target of a dependent action's median with low latency
DEPENDENT = "40 dependent actions"
INPUTS, WIDE = 50, 200
LARGE = 16  # MiB of a large blob
WINDOWS = "edge, Envoy Gateway's own windows"
_RULE = 'genrule(name = "{0}", outs = ["{0}.txt"], srcs = [{1}], cmd = "echo {2} > $@")\n'
_TRIVIAL = json.dumps(["/bin/sh", "-c", ": {salt} {index}"])


@dataclass
class Found:
    """The results of one way: milliseconds and MiB/s by endpoint and request, seconds of builds, parts of an action."""

    requests: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)
    builds: dict[str, float] = field(default_factory=dict)
    action: float = 0.0  # ms, the median of the dependent ones
    stages: dict[str, float] = field(default_factory=dict)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print. Return 0, and raise an error if a run fails."""
    parser = argparse.ArgumentParser(prog="python -m bench latency", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="runs of each build (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=2, metavar="N", help="duration of each kind of request (default: %(default)s)"
    )
    given = parser.parse_args(arguments)
    which = f"the original, {max(nativelink.SAVED)}" if nativelink.SAVED else "the stand-in"
    print(f"{numbers.machine()}; NativeLink is {which}\n", flush=True)
    pools = [pool("default", slots=8, min_replicas=2, longest_action="4m")]
    ways: dict[str, Callable[[Edge], None]] = {PLAIN: _plain, DIRECT: _direct, LOW: _low_latency}
    found = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        with _quiet():
            made = stack.enter_context(edge.opened("latency", folder, nativelink_worker_pools=pools))
        made.where.apply(chain.this_machine(made.where, CAS))
        for way, prepare in ways.items():
            with _quiet():
                prepare(made)
                _restart(made)
            found[way] = _measured(made, given.rounds, given.seconds, folder / way.replace(" ", "-"))
            print(f"measured: {way}", flush=True)
    _show(found)
    return 0


def _quiet() -> contextlib.AbstractContextManager[Any]:
    """Hide the output of playbooks, which the test helpers print."""
    return contextlib.redirect_stdout(io.StringIO())


def _plain(made: Edge) -> None:
    """Make scheduler and workers reach the CAS through its Service."""
    tree = made.site.tree_of(edge.NAME) / "rendered"
    for path in [tree / "scheduler/scheduler.json5", *tree.glob("worker/*/worker.json5")]:
        settings = json5.loads(path.read_text())
        settings["stores"] = [_public(store) for store in settings["stores"]]
        path.write_text(json.dumps(settings))
    policy = tree / "policy/scheduler.yaml"
    before, _, after = policy.read_text().rpartition("port: 50052")  # the first one is for clients
    policy.write_text(f"{before}port: 50051{after}")
    made.apply()


def _public(value: Any) -> Any:
    """Return a store's configuration with its shards replaced by the public listener."""
    if isinstance(value, list):
        return [_public(each) for each in value]
    if not isinstance(value, dict):
        return value
    if "shard" not in value:
        return {name: _public(each) for name, each in value.items()}
    first = value["shard"]["stores"][0]["store"]["grpc"]
    listener = {
        "instance_name": "main",
        "endpoints": [{"address": f"grpc://nativelink-cas.{CAS}.svc:50051"}],
        "store_type": first["store_type"],
        "retry": first["retry"],
    }
    return {**{name: each for name, each in value.items() if name != "shard"}, "grpc": listener}


def _direct(made: Edge) -> None:
    made.site.playbook("render")
    made.apply()


def _low_latency(made: Edge) -> None:
    made.where.load(*components.images_of("bpftool"))
    made.site.set(edge.NAME, node_agent_low_latency=True)
    made.site.playbook("provision")


def _restart(made: Edge) -> None:
    """Restart all of NativeLink, because the connections that it has accepted do not change."""
    for namespace, workload in WORKLOADS:
        if not nativelink.SAVED:
            made.where.run("-n", namespace, "set", "env", workload, "NATIVELINK_STANDIN_NAGLE=1")
        made.where.run("-n", namespace, "rollout", "restart", workload)
    made.ready()


def _measured(made: Edge, rounds: int, seconds: float, folder: Path) -> Found:
    found = Found()
    for name, arguments in _endpoints(made).items():
        found.requests |= {(name, kind): told for kind, told in _requests(arguments, seconds).items()}
    with _own_windows(made):
        found.requests |= {
            (WINDOWS, kind): told
            for kind, told in _requests(_endpoints(made)["edge"], seconds).items()
            if "large" in kind
        }
    folder.mkdir()
    client = Bazel(folder)
    client.endpoints = [
        f"--remote_executor=grpc://{made.where.service_address(CAS, 'nativelink-scheduler')}:50052",
        f"--remote_cache=grpc://{made.where.service_address(CAS, 'nativelink-cas')}:50051",
    ]
    inputs = 2 * WIDE
    for number in range(inputs):
        (client.workspace / f"in{number}").write_text(f"{folder.name} {number}\n" * 20)
    try:
        client.timed(_independent("warm"), 8)
        for kind, (text, jobs) in _builds(inputs).items():
            timed = [client.timed(text(f"{time.time_ns()}"), jobs) for _ in range(rounds)]
            found.builds[kind] = statistics.median(each.seconds for each in timed)
            if kind == DEPENDENT:
                found.action = statistics.median(span for each in timed for span in each.spans[ACTION])
    finally:
        client.run("shutdown")
    found.stages = _stages(made)
    return found


def _requests(arguments: list[str], seconds: float) -> dict[str, dict[str, float]]:
    """Send requests one after another, and return the client's report by the kind of request."""
    command = [str(build.program("reapi-load")), "cas", "--concurrency=1", *arguments]
    command += [f"--seconds={seconds}", f"--large={LARGE * 1024**2}"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {each["kind"]: each for each in map(json.loads, told.splitlines())}


@contextlib.contextmanager
def _own_windows(made: Edge) -> Iterator[None]:
    """Remove our windows and buffers towards the CAS from the edge, and restore them afterwards."""
    change = [{"op": "remove", "path": f"/spec/{field}"} for field in ("http2", "connection")]
    patch = ("-n", CAS, "patch", "backendtrafficpolicy", "nativelink", "--type=json", "-p", json.dumps(change))
    clusters = "envoy_cluster_manager_cluster_modified{.*}"
    before = made.metric(clusters)
    made.where.run(*patch)
    try:
        until("Envoy to change its clusters", lambda: made.metric(clusters) > before, 30)
        yield
    finally:
        before = made.metric(clusters)
        made.apply()
        until("Envoy to change its clusters back", lambda: made.metric(clusters) > before, 30)


def _endpoints(made: Edge) -> dict[str, list[str]]:
    """Return the arguments of a client of the CAS, by the endpoint that it reaches."""
    pod = made.where.run("-n", CAS, "get", "pod", "nativelink-cas-0", "-o", "jsonpath={.status.podIP}")
    return {
        "slice": [f"--cas-endpoint=grpc://{pod}:50052", "--instance=slice"],
        "Service": [f"--cas-endpoint=grpc://{made.where.service_address(CAS, 'nativelink-cas')}:50051"],
        "edge": [
            f"--cas-endpoint=grpcs://{edge.HOST}:443",
            f"--connect-to={made.address}:443",
            f"--tls-certificate={made.folder / 'servers.crt'}",
        ],
    }


def _builds(inputs: int) -> dict[str, tuple[Callable[[str], str], int]]:
    """Return by title a function that makes a BUILD file, and how many of its actions run at a time.

    The function takes a word. Another word makes other actions, which no cache has.
    """

    def dependent(word: str) -> str:
        sources = ["", *(f'"{number}.txt"' for number in range(39))]
        return "".join(_RULE.format(number, source, word) for number, source in enumerate(sources))

    def wide(word: str) -> str:
        def sources(number: int) -> str:
            return ", ".join(f'"in{(7 * number + each) % inputs}"' for each in range(INPUTS))

        return "".join(_RULE.format(number, sources(number), f"{word} {number}") for number in range(WIDE))

    return {
        DEPENDENT: (dependent, 8),
        "40 actions, 8 at a time": (_independent, 8),
        f"{WIDE} actions of {INPUTS} inputs, 8 at a time": (wide, 8),
    }


def _independent(word: str) -> str:
    return "".join(_RULE.format(number, "", f"{word} {number}") for number in range(40))


def _stages(made: Edge) -> dict[str, float]:
    """Run trivial actions one after another, and return the median milliseconds of each part of an action."""
    command = [str(build.program("reapi-load")), "--actions=40", "--concurrency=1"]
    command += [f"--command={_TRIVIAL}", "--platform=pool=default", "--platform=OSFamily=Linux"]
    command += [f"--execute-endpoint=grpc://{made.where.service_address(CAS, 'nativelink-scheduler')}:50052"]
    command += [f"--cas-endpoint=grpc://{made.where.service_address(CAS, 'nativelink-cas')}:50051"]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    parts: dict[str, list[float]] = {}
    for each in report["actions"]:
        told = each.get("stages", {})
        for name, value in {**told, "all": 1000 * each["seconds"]}.items():
            parts.setdefault(name, []).append(value)
    return {name: statistics.median(values) for name, values in parts.items()}


def _show(found: dict[str, Found]) -> None:
    def table(title: str, rows: Iterator[tuple[str, list[str]]]) -> None:
        print(f"\n{title:48} " + " ".join(f"{way:>20}" for way in found))
        for name, row in rows:
            print(f"{name:48} " + " ".join(f"{each:>20}" for each in row), flush=True)

    def requests(large: bool) -> Iterator[tuple[str, list[str]]]:
        for name, kind in next(iter(found.values())).requests:
            if ("large" in kind) == large:
                each = [way.requests[name, kind] for way in found.values()]
                small = [f"{one['p50_ms']:.1f} ({one['p99_ms']:.1f})" for one in each]
                yield f"{name}: {kind}", [f"{LARGE * one['per_second']:.0f}" for one in each] if large else small

    def builds() -> Iterator[tuple[str, list[str]]]:
        for kind in next(iter(found.values())).builds:
            first = found[PLAIN].builds[kind]
            yield kind, [f"{way.builds[kind]:.1f} ({way.builds[kind] / first:.2f})" for way in found.values()]
        yield "a dependent action, ms at the median", [f"{way.action:.0f}" for way in found.values()]

    def stages() -> Iterator[tuple[str, list[str]]]:
        for name in next(iter(found.values())).stages:
            yield name, [f"{way.stages.get(name, 0):.1f}" for way in found.values()]

    table("milliseconds, p50 (p99)", requests(large=False))
    table("MiB a second", requests(large=True))
    table("Bazel, seconds (share of the first way)", builds())
    table("a trivial action's parts, ms at the median", stages())
    print()
    for way, wanted in TARGETS.items():
        ratio = found[way].builds[DEPENDENT] / found[PLAIN].builds[DEPENDENT]
        if way == DIRECT and not nativelink.SAVED:
            verdict = f"target: {wanted}, on the original only"
        else:
            verdict = f"target: {wanted}{', missed' if ratio > wanted else ''}"
        print(f"{DEPENDENT}, {way} / {PLAIN}: {ratio:.2f} ({verdict})")
    missed = ", missed" if found[LOW].action > OVERHEAD else ""
    print(f"a dependent action with its command, {LOW}: {found[LOW].action:.0f} ms (target: {OVERHEAD:.0f}{missed})")

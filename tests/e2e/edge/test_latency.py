"""Latency of small reads and writes, and of builds of small actions, as rendered and with low latency.

The farm has two CAS pods, and two workers of 8 slots. Only NativeLink itself has a latency to measure.
"""

import json
import statistics
import subprocess
import time
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest

from testkit import nativelink, numbers
from testkit.bazel import Bazel
from testkit.client import Client
from testkit.edge import CAS, NAME, Edge
from testkit.farm import load_images, this_machine
from testkit.site import pool

pytestmark = [pytest.mark.bench, nativelink.only_original("its latency")]
OVERHEAD = 60.0  # ms, the target of a dependent action's median with low latency
INPUTS, WIDE, LARGE = 50, 200, 16 * 1024**2
TRIVIAL = json.dumps(["/bin/sh", "-c", ": {salt} {index}"])
RULE = 'genrule(name = "{0}", outs = ["{0}.txt"], srcs = [{1}], cmd = "echo {2} > $@")\n'


def restart(edge: Edge) -> None:
    """Restart all of NativeLink, because the connections that it has accepted do not change."""
    ours = ("statefulset/nativelink-cas", "deployment/nativelink-scheduler")
    edge.where.run("-n", CAS, "rollout", "restart", *ours)
    edge.where.run("-n", edge.workers, "rollout", "restart", "deployment/nativelink-worker-default")
    edge.ready()


def requests(client: Client) -> list[dict[str, Any]]:
    """Send requests one after another. Return by kind how long the answers took: ``{"kind": …, "ms": [0.8, …]}``."""
    command = client.command("cas", "--seconds=2", f"--large={LARGE}")
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in told.splitlines()]


def dependent(word: str) -> str:
    sources = ["", *(f'"{number}.txt"' for number in range(39))]
    return "".join(RULE.format(number, source, word) for number, source in enumerate(sources))


def wide(word: str) -> str:
    def sources(number: int) -> str:
        return ", ".join(f'"in{(7 * number + each) % (2 * WIDE)}"' for each in range(INPUTS))

    return "".join(RULE.format(number, sources(number), f"{word} {number}") for number in range(WIDE))


def measure(edge: Edge, rounds: int, folder: Path) -> float:
    """Print all measurements, and return the median milliseconds of a dependent action."""
    direct = edge.client()
    for way, client in {"Service": direct, "edge": edge.outside}.items():
        for each in requests(client):
            took = sorted(each["ms"])
            speed = f"{LARGE / 1024**2 / statistics.mean(took) * 1000:.0f} MiB/s"
            small = f"p50 {took[len(took) // 2]:.1f} ms, p99 {took[len(took) * 99 // 100]:.1f} ms"
            print(f"  {way}: {each['kind']:40} {speed if 'large' in each['kind'] else small}")
    folder.mkdir()
    action = 0.0
    with Bazel.started(folder) as bazel:
        bazel.at(direct)
        for number in range(2 * WIDE):
            (bazel.workspace / f"in{number}").write_text(f"{folder.name} {number}\n" * 20)
        bazel.timed(dependent("warm"), 8)
        builds = {"40 dependent actions": dependent, f"{WIDE} actions of {INPUTS} inputs, 8 at a time": wide}
        for title, text in builds.items():
            # Another word makes actions that no cache has.
            timed = [bazel.timed(text(f"{time.time_ns()}"), 8) for _ in range(rounds)]
            print(f"  Bazel, {title}: {statistics.median(seconds for seconds, _ in timed):.1f} s")
            if text is dependent:
                action = statistics.median(each for _, actions in timed for each in actions)
    report = direct.report("--actions=40", "--concurrency=1", f"--command={TRIVIAL}", pool="default", OSFamily="Linux")
    parts: dict[str, list[float]] = {}
    for each in report["actions"]:
        moments = sorted(each["moments"].items(), key=itemgetter(1))
        for (_, start), (name, end) in pairwise(moments):
            parts.setdefault(f"until {name}", []).append(1000 * (end - start))
        parts.setdefault("all", []).append(1000 * each["seconds"])
    for name, values in parts.items():
        print(f"  a trivial action, {name}: {statistics.median(values):.1f} ms")
    print(f"  a dependent action with its command: {action:.0f} ms", flush=True)
    return action


def test_what_the_edge_costs(edge: Edge) -> None:
    """Direct, through an edge without roles, and through one with roles, in one run with low latency."""
    load_images(edge.where, "bpftool")
    edge.site.set(NAME, node_agent_low_latency=True)
    edge.site.playbook("provision")
    edge.where.apply(this_machine(edge.where, CAS))

    def measured(client: Client) -> dict[str, list[float]]:
        restart(edge)
        time.sleep(20)  # what starts is busy for a while
        took = {each["kind"]: sorted(each["ms"]) for each in requests(client)}
        began = time.monotonic()
        client.report(f"--actions={WIDE}", "--concurrency=8", f"--command={TRIVIAL}", pool="default", OSFamily="Linux")
        return {**took, f"{WIDE} actions, 8 at a time": [1000 * (time.monotonic() - began)]}

    found = {"direct": measured(edge.client()), "roles": measured(edge.outside)}
    edge.configure(nativelink_edge_access=[], nativelink_edge_token_issuers=[])
    edge.where.run("-n", CAS, "delete", "securitypolicies", "--all")
    found["no roles"] = measured(edge.outside)
    print(f"\n{numbers.machine()}; NativeLink is {max(nativelink.SAVED)}")
    for kind, direct in found["direct"].items():
        for way in ("no roles", "roles"):
            took = found[way][kind]
            middle, last = (took[int(len(took) * part)] for part in (0.5, 0.99))
            ratio = statistics.mean(direct) / statistics.mean(took)
            more = middle - direct[len(direct) // 2]
            print(f"  {kind}, {way}: p50 {more:+.1f} ms, p99 {last:.1f} ms, {ratio:.2f} of the direct speed")


def test_latency(edge: Edge, rounds: int, tmp_path: Path) -> None:
    print(f"\n{numbers.machine()}; NativeLink is {max(nativelink.SAVED)}\nas rendered", flush=True)
    pools = [pool("default", slots=8, min_replicas=2, longest_action="4m")]
    edge.site.set(NAME, nativelink_worker_pools=pools, nativelink_cas_replicas=2)
    edge.site.playbook("render")
    edge.apply_folder()
    edge.where.apply(this_machine(edge.where, CAS))
    restart(edge)
    rendered = measure(edge, rounds, tmp_path / "rendered")
    load_images(edge.where, "bpftool")
    edge.site.set(NAME, node_agent_low_latency=True)
    edge.site.playbook("provision")
    restart(edge)
    print("with low latency", flush=True)
    low = measure(edge, rounds, tmp_path / "low")
    missed = ", missed" if low > OVERHEAD else ""
    print(f"a dependent action: {low:.0f} ms (target: {OVERHEAD:.0f}{missed}), {low / rendered:.2f} of the first")

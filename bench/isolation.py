"""Measure isolation: what a user of its own costs an action, by the number of its inputs.

A real NativeLink runs the rendered configurations as processes (docs/conformance.md). NATIVELINK=FILE or a FILE names
it. Two farms run beside each other, and their actions alternate, one at a time, so that the load of the machine is the
same for both. Inputs are in the worker's store before the first action that counts.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
from pathlib import Path

from bench import numbers, processes
from conformance import namespaces
from conformance.farm import Farm, pool
from conformance.plan import Plan
from conformance.pods import Network

LEVELS = ("users", "none")
INPUTS = {1: 40, 50: 40, 2000: 20}  # their number, and how many actions have as many
WANTED = 10  # ms more at the median
_BATCH = 5  # actions of one farm before it is the other's turn
_ANY = {"pool": "default"}
_TRIVIAL = json.dumps(["/bin/sh", "-c", ": {salt} {index}"])


def main(arguments: list[str] | None = None) -> int:
    """Measure and print. Return 1 if a run failed, and 2 without a NativeLink or namespaces."""
    parser = processes.parser("isolation", __doc__)
    given = parser.parse_args(arguments)
    return processes.run("isolation", given.file)


def inside(plan: Plan) -> int:
    """Measure and print, inside of the namespaces. Return 1 if a run failed."""
    if not namespaces.has_users():
        print(f"not measured: {namespaces.WITHOUT_USERS}")
        return 2
    (under_test,) = plan.subjects
    network = Network(plan.folder)
    print(f"{numbers.machine()}; NativeLink {under_test.title}; milliseconds from the inputs' fetch to the outputs'")
    numbers.head("inputs and isolation")
    with contextlib.ExitStack() as farms:
        started = {
            level: farms.enter_context(
                Farm(
                    under_test,
                    plan.tools,
                    network,
                    plan.folder / level,
                    {"nativelink_worker_pools": [pool("default", 1)], "nativelink_worker_isolation": level},
                )
            )
            for level in LEVELS
        }
        for inputs, actions in INPUTS.items():
            took: dict[str, list[float]] = {level: [] for level in LEVELS}
            for farm in started.values():
                _milliseconds(farm, inputs, 1)
            for _ in range(actions // _BATCH):
                for level, farm in started.items():
                    took[level] += _milliseconds(farm, inputs, _BATCH)
            for level in LEVELS:
                numbers.row(f"{inputs} inputs, {level}", took[level])
            more = statistics.median(took["users"]) - statistics.median(took["none"])
            verdict = ", missed" if more > WANTED else ""
            print(f"{inputs} inputs: {more:+.1f} ms at the median (target: {WANTED}{verdict})", flush=True)
    return 0


def _milliseconds(farm: Farm, inputs: int, actions: int) -> list[float]:
    """Run actions one after another. Return how long the worker took for each, by its own clock."""
    files = [f"--input=input-{number}={number} of {inputs}" for number in range(inputs)]
    arguments = (*files, f"--command={_TRIVIAL}", f"--actions={actions}", "--concurrency=1", "--timeout=600")
    report = farm.load(*arguments, platform=_ANY)
    if report["failed"]:
        raise SystemExit(f"{report['failed']} actions failed: {report['actions'][0]}")
    parts = ("fetch", "start", "run", "collect")
    return [sum(each["stages"].get(part, 0) for part in parts) for each in report["actions"]]


if __name__ == "__main__":
    sys.exit(inside(Plan.read(Path(sys.argv[2]))))

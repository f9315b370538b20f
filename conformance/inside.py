"""The part of a run that has its own namespaces: ``python -m conformance.inside PLAN``, which ``__main__`` starts.

The status is 1 if anything failed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from conformance import checks, configurations, table
from conformance.plan import Plan
from conformance.pods import Network
from conformance.subject import Subject
from conformance.table import Row

_PARTS: dict[str, Callable[[Plan, Subject, Network], Iterator[Row]]] = {
    "configurations": configurations.check,
    "farm": checks.check,
}


def main(plan: Plan) -> int:
    """Run the plan and print the table. Return 1 if anything failed."""
    network = Network(plan.folder)
    found: list[Row] = []
    print(table.head(), flush=True)
    for subject in plan.subjects:
        for part in plan.parts:
            for row in _PARTS[part](plan, subject, network):
                found.append(row)
                print(table.line(row), flush=True)
    print("\n" + "\n".join(table.summary(found)))
    return int(any(row.outcome == table.FAILED for row in found))


if __name__ == "__main__":
    sys.exit(main(Plan.read(Path(sys.argv[1]))))

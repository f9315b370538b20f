"""What is fast and what is not: ``python -m bench [PART [ARGUMENTS]]``, where ``PART --help`` says what it measures.

All parts in their order, without a PART. Each prints tables, on clusters and in folders that it makes and removes.
"""

from __future__ import annotations

import importlib
import sys

from testbed.waiting import ClusterError

PARTS = ("rendering", "demand", "bootstrap", "sync", "reaction", "latency", "load")


def main(arguments: list[str]) -> int:
    """Measure and print; the status is 1 when a run failed, and 2 for a part that is none."""
    if arguments and arguments[0] not in PARTS:
        print(f"python -m bench [{'|'.join(PARTS)} [ARGUMENTS]]: not {arguments[0]}", file=sys.stderr)
        return 2
    status = 0
    for part in arguments[:1] or PARTS:
        print(f"== {part}", flush=True)
        try:
            status |= importlib.import_module(f"bench.{part}").main(arguments[1:])
        except ClusterError as error:  # without root there is no real node
            print(f"{part} was not measured: {error}", flush=True)
            status = 1
        print(flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Run the measurements: ``python -m bench [PART [ARGUMENTS]]``, where ``PART --help`` says what a part measures.

Without a PART all parts run, in their order. Each part prints tables. It creates the clusters and folders that it
needs, and removes them afterwards.
"""

from __future__ import annotations

import importlib
import sys

from testbed.waiting import ClusterError

PARTS = ("rendering", "demand", "bootstrap", "load", "isolation")


def main(arguments: list[str]) -> int:
    """Measure and print. Return 0, 1 if a run failed, or 2 for an unknown part."""
    if arguments and arguments[0] not in PARTS:
        print(f"python -m bench: unknown part {arguments[0]!r}; the parts are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    status = 0
    for part in arguments[:1] or PARTS:
        print(f"== {part}", flush=True)
        try:
            status |= importlib.import_module(f"bench.{part}").main(arguments[1:])
        except ClusterError as error:  # a real node needs root
            print(f"{part} was not measured: {error}", flush=True)
            status = 1
        print(flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

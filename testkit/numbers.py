"""Distributions of measured values, and the load of the machine while they were measured."""

import os
import statistics
from collections.abc import Iterable


def distribution(values: Iterable[float]) -> tuple[float, float, float, float]:
    """Return minimum, median, 95th percentile (the smallest value that 95% do not exceed) and maximum."""
    ordered = sorted(values)
    return ordered[0], statistics.median(ordered), ordered[-(-95 * len(ordered) // 100) - 1], ordered[-1]


def machine() -> str:
    """Describe the machine's cores and load. The numbers of a machine that is not idle are too high."""
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} cores, load {load:.1f}" + (" (not idle: the numbers are too high)" if load > 0.5 else "")


def head(what: str) -> None:
    """Print the head of a table of distributions."""
    print(f"{what:48} {'runs':>5} {'min':>7} {'median':>7} {'p95':>7} {'max':>7}", flush=True)


def row(what: str, values: list[float], wanted: float | None = None) -> None:
    """Print a row of such a table; ``wanted`` is the target of the p95."""
    numbers = distribution(values)
    verdict = "" if wanted is None else f"  (target: {wanted:g}{', missed' if numbers[2] > wanted else ''})"
    print(f"{what:48} {len(values):5} {' '.join(f'{number:7.2f}' for number in numbers)}{verdict}", flush=True)

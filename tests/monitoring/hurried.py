"""Rules that wait less, for tests that make an alert fire on a real node."""

from __future__ import annotations

import copy
import re
from typing import Any

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
# A range or an offset.
_SPAN = re.compile(r"(\[|offset )(\d+)([smhd])")
SHORTEST = 5
"""Seconds that no wait, range or offset falls below."""


def hurried(groups: list[dict[str, Any]], factor: float) -> list[dict[str, Any]]:
    """Return groups of rules whose `for`, ranges and offsets are divided by a factor, in whole seconds.

    A range needs two samples to be of use, so the factor depends on the scrape interval of the test.
    """
    changed = copy.deepcopy(groups)
    for rule in (rule for group in changed for rule in group["rules"]):
        rule["expr"] = _SPAN.sub(lambda found: f"{found[1]}{_divided(found[2], found[3], factor)}", rule["expr"])
        if "for" in rule:
            rule["for"] = _divided(rule["for"][:-1], rule["for"][-1], factor)
    return changed


def _divided(number: str, unit: str, factor: float) -> str:
    return f"{max(SHORTEST, round(int(number) * _UNITS[unit] / factor))}s"

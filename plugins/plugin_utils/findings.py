"""What is wrong with an inventory or a cluster, as people read it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# What a rule yields for each fault: variable, problem, remedy.
Findings = Iterator[tuple[str, str, str]]


@dataclass(frozen=True, order=True)
class Finding:
    """What is wrong with one variable of one cluster, and what mends it."""

    cluster: str
    variable: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        """The line that people read."""
        return f"{self.cluster}: {self.variable}: {self.problem}; {self.remedy}"

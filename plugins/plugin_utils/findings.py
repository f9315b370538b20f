"""Findings: the errors of an inventory or a cluster, in the form that users read."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# A rule yields a tuple for each error: variable, problem, remedy.
Findings = Iterator[tuple[str, str, str]]


@dataclass(frozen=True, order=True)
class Finding:
    """An error in one variable of one cluster. `remedy` says how to correct it.

    For an error in an inventory file, `cluster` is the file and line, and `variable` is the key.
    """

    cluster: str
    variable: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        """The line that users read."""
        return f"{self.cluster}: {self.variable}: {self.problem}; {self.remedy}"


def relative(path: Path) -> str:
    """The path as the user would type it, relative to the working directory where it lies inside of that."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)

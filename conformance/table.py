"""The results of a run, as rows of one table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

OK, FAILED, NOT_RUN = "ok", "FAILED", "not run"
_WIDEST = 400  # characters of a process' output


@dataclass(frozen=True)
class Row:
    """The result of one configuration or check for one version.

    ``where`` is the tree, ``what`` the configuration in it or the check, and ``outcome`` one of the three above.
    ``detail`` says what was seen, how it failed, or why it was not run.
    """

    version: str
    where: str
    what: str
    outcome: str
    detail: str = ""


def line(row: Row) -> str:
    """Return the printed form of the row."""
    detail = " ".join(row.detail.split())
    if len(detail) > _WIDEST:
        detail = f"{detail[:_WIDEST]} …"
    return f"{row.version:9} {row.where:16} {row.what:58} {row.outcome:8} {detail}".rstrip()


def head() -> str:
    """Return the head of the table."""
    return f"{'version':9} {'tree':16} {'configuration or check':58} {'outcome':8} detail"


def summary(rows: Iterable[Row]) -> list[str]:
    """Return a line for each version, with the number of rows of each outcome."""
    counted: dict[str, Counter[str]] = {}
    for row in rows:
        counted.setdefault(row.version, Counter())[row.outcome] += 1
    return [
        f"{version}: " + ", ".join(f"{counts[outcome]} {outcome}" for outcome in (OK, FAILED, NOT_RUN))
        for version, counts in counted.items()
    ]

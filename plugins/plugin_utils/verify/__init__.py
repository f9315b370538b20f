"""Checks of a live cluster: what each one saw, as a table, and what to do about those that failed."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

from ..api import Api, ApiError
from ..columns import aligned
from ..context import Context
from ..reapi import CallError, Reapi

_PAGE = "docs/verify.md says what it means"
FAILED = "FAILED"
Check = Callable[[], str]
Chain = Mapping[str, Check]


class Fault(Exception):
    """A check failed: what was seen, and what to do."""

    def __init__(self, seen: str, fix: str) -> None:
        """Take the parts of the message."""
        super().__init__(" ".join(seen.split()))
        self.fix = fix


class Skipped(Exception):
    """A check does not apply to this cluster, or cannot see what it looks at. `str` gives the reason."""


@dataclass(frozen=True)
class Farm:
    """A live cluster and its clients. `address` is the edge's, or empty if the clients come past it.

    `api` is None inside the cluster. `cas` and `scheduler` are the same client at the edge. `stranger` shows no
    identity; it is None where all may call.
    """

    context: Context
    api: Api | None
    address: str
    cas: Reapi
    scheduler: Reapi
    stranger: Reapi | None
    role: str
    timeout: float
    megabytes: int

    @property
    def values(self) -> Mapping[str, Any]:
        """The cluster's variables."""
        return self.context.variables


@dataclass(frozen=True)
class Row:
    """The result of a check: `ok`, `FAILED` or `skipped`, and what was seen. A fault has a fix."""

    check: str
    result: str
    seen: str
    fix: str = ""


def unasked() -> str:
    """Skip a check that asks the API server, where this may not."""
    raise Skipped("this pod has no token for the API server")


def may_write(farm: Farm) -> None:
    """Skip a check that uploads, if its client may only read."""
    if farm.role == "read":
        raise Skipped("verify_role is read")


def run(first: Chain, then: Sequence[Chain], beside: Chain) -> list[Row]:
    """Run all checks: the chains of `then` side by side after `first`, if it passes, and those of `beside` meanwhile.

    A check of a chain other than `beside` is skipped if one before it failed.
    """
    with ThreadPoolExecutor(1 + len(then)) as at_once:
        others = at_once.submit(lambda: [_row(*each) for each in beside.items()])
        begun = _chained(first)
        if failed := [row.check for row in begun if row.result == FAILED]:
            rows = [Row(name, "skipped", f"{failed[0]} failed") for each in then for name in each]
        else:
            rows = list(chain.from_iterable(at_once.map(_chained, then)))
        return begun + rows + others.result()


def _chained(checks: Chain) -> list[Row]:
    rows: list[Row] = []
    for name, check in checks.items():
        failed = [row.check for row in rows if row.result == FAILED]
        rows.append(Row(name, "skipped", f"{failed[0]} failed") if failed else _row(name, check))
    return rows


def _row(name: str, check: Check) -> Row:
    try:
        return Row(name, "ok", check())
    except Fault as fault:
        return Row(name, FAILED, str(fault), fault.fix)
    except Skipped as reason:
        return Row(name, "skipped", str(reason))
    except Exception as error:  # one check must not keep the others from being seen
        kind = "" if isinstance(error, (CallError, ApiError, OSError)) else f"{type(error).__name__}: "
        return Row(name, FAILED, f"{kind}{error}", getattr(error, "remedy", _PAGE))


def table(rows: Sequence[Row]) -> list[str]:
    """The lines of the table, without its faults' fixes."""
    return aligned([(row.check, row.result, row.seen) for row in rows])

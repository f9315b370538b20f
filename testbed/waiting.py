"""What a cluster that does not do its part raises, and the one way to wait for it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path


class ClusterError(Exception):
    """A cluster did not do what was asked; the message says what was awaited and how the log ends."""


def patient(seconds: float) -> float:
    """Seconds that are enough on a machine with little else to do, times ``TESTBED_PATIENCE``: what is enough here."""
    return seconds * float(os.environ.get("TESTBED_PATIENCE") or 1)


def until(what: str, check: Callable[[], bool], seconds: float, details: Callable[[], str] = str) -> None:
    """Poll until ``check`` is true; ClusterError after ``patient(seconds)``, with what was awaited and why in vain.

    A check that raises ClusterError or OSError, as one that reaches nobody does, is not true yet.
    """
    seconds = patient(seconds)
    deadline = time.monotonic() + seconds
    while True:
        reason, began = "", time.monotonic()
        try:
            if check():
                return
        except (ClusterError, OSError) as error:
            reason = f": {error}"
        if time.monotonic() > deadline:
            raise ClusterError(f"waited {seconds:.0f} s for {what}, in vain{reason}{details()}")
        # A check that takes much of the machine would keep others from what is awaited.
        time.sleep(max(0.1, 3 * (time.monotonic() - began)))


def tails(logs: Iterable[Path], lines: int = 6) -> str:
    """The last lines of every log that has any, for an error message."""
    text = ""
    for log in logs:
        content = log.read_text(errors="replace").splitlines() if log.exists() else []
        if content:
            text += "\n".join([f"\n--- {log}", *(line[-400:] for line in content[-lines:])])
    return text

"""Waiting for a cluster: polling with a deadline, and the error when the deadline passes."""

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path


class ClusterError(Exception):
    """A cluster did not do what was asked. The message says what, and ends with the last lines of the logs."""


def patient(seconds: float) -> float:
    """Multiply seconds that are enough on an idle machine by ``TESTBED_PATIENCE``."""
    return seconds * float(os.environ.get("TESTBED_PATIENCE") or 1)


def until(what: str, check: Callable[[], bool], seconds: float, details: Callable[[], str] = str) -> None:
    """Poll until ``check`` returns True. ClusterError after ``patient(seconds)``, with the last error and details.

    ``what`` names the condition in the message: "the API server to answer". A check that raises ClusterError or
    OSError, for example because a connection is refused, counts as False.
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
            raise ClusterError(f"timed out after {seconds:.0f} s waiting for {what}{reason}{details()}")
        # A check that is expensive runs less often, so that it does not delay what it waits for.
        time.sleep(max(0.1, 3 * (time.monotonic() - began)))


def tails(logs: Iterable[Path]) -> str:
    """Return the last lines of every log that has any, for an error message."""
    text = ""
    for log in logs:
        content = log.read_text(errors="replace").splitlines() if log.exists() else []
        if content:
            text += "\n".join([f"\n--- {log}", *(line[-400:] for line in content[-6:])])
    return text

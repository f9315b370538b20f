"""The few calls of Prometheus' HTTP API that pictures and tests need."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any


class QueryError(Exception):
    """A query that Prometheus refuses; the message holds the query and the reason."""


def matrix(address: str, query: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
    """Return the series of a query over a range of Unix times. `step` is in seconds. Raises QueryError."""
    return _asked(address, "query_range", query, start=start, end=end, step=step)


def vector(address: str, query: str, time: float) -> list[dict[str, Any]]:
    """Return the series of a query at a Unix time. Raises QueryError."""
    return _asked(address, "query", query, time=time)


def _asked(address: str, call: str, query: str, **parameters: float) -> list[dict[str, Any]]:
    data = urllib.parse.urlencode({"query": query, **parameters}).encode()
    try:
        with urllib.request.urlopen(f"{address}/api/v1/{call}", data, timeout=60) as answer:
            return list(json.load(answer)["data"]["result"])
    except urllib.error.HTTPError as error:
        raise QueryError(f"{query}: {error.read().decode(errors='replace')}") from error

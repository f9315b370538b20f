"""Clients that are broken or hostile, at a real Envoy, beside a build of another client, which goes on.

The limits are lower than a user's, so that the tests do not take minutes.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from testbed.waiting import until
from testkit.client import reported
from testkit.edge import CAS, Edge

BUILD = ("--actions=24", "--seconds=1-1", "--concurrency=4", "--retries=0")
LIMIT = 60
SILENCE = 5
# What a client does, over how many connections with how many calls each, and until when Envoy ends it.
ABUSE = {
    "slow": (40, 1, SILENCE),
    "idle": (4, 1000, SILENCE),
    "resets": (10, 5000, 0),
    "headers": (10, 1, 0),
}


def patched(edge: Edge, kind: str, name: str, change: dict[str, Any]) -> None:
    edge.where.run("-n", CAS, "patch", kind, name, "--type=merge", "-p", json.dumps({"spec": change}))


@pytest.fixture(scope="module", autouse=True)
def low(edge: Edge) -> Iterator[None]:
    """Lower the limits."""
    silence = {"idleTimeout": f"{SILENCE}s"}
    limit = {"connectionLimit": {"value": LIMIT}}
    patched(edge, "clienttrafficpolicy", "nativelink", {"timeout": {"http": silence}, "connection": limit})
    patched(edge, "backendtrafficpolicy", "nativelink", {"timeout": {"http": {"streamIdleTimeout": f"{SILENCE}s"}}})
    until("the limits to be lower", lambda: flood(edge)["opened"] <= LIMIT, 30)
    yield
    edge.apply_folder()


def abuse(edge: Edge, kind: str, connections: int, calls: int, seconds: int) -> dict[str, float]:
    """Let a client do something, and return what became of its connections."""
    options = (f"--kind={kind}", f"--connections={connections}", f"--streams={calls}", f"--seconds={seconds}")
    return reported(edge.outside.start("abuse", *options))


def flood(edge: Edge) -> dict[str, float]:
    return abuse(edge, "connections", LIMIT + 40, 1, 3)


@pytest.mark.parametrize("kind", ABUSE)
def test_a_build_goes_on_beside_a_client_that_does(edge: Edge, kind: str) -> None:
    connections, calls, after = ABUSE[kind]
    build = edge.outside.start(*BUILD, pool="default")
    told = abuse(edge, kind, connections, calls, 60)
    report = reported(build)
    print(f"{kind}: {told}; the actions beside it took {max(each['seconds'] for each in report['actions']):.1f} s")
    assert (report["ok"], report["failed"]) == (24, 0), report
    assert (told["opened"], told["closed"]) == (connections, connections)
    assert told["first"] >= after - 0.5


def test_connections_beyond_the_limit_are_closed_and_those_before_go_on(edge: Edge) -> None:
    build = edge.outside.start(*BUILD, pool="default")
    told = flood(edge)
    report = reported(build)
    print(f"{LIMIT + 40} connections where {LIMIT} are allowed: {told}")
    assert (report["ok"], report["failed"]) == (24, 0), report
    assert 0 < told["opened"] <= LIMIT

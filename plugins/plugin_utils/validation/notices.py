"""What is legal, and will still surprise: a function each, that yields (variable, problem, remedy)."""

from __future__ import annotations

from collections.abc import Callable

from .. import versions
from ..context import cpus_of, failing_polls, memory_of, scaling_of
from ..findings import Findings
from ..quantities import size_text
from ..specs import Values
from .rules import pools_of


def shared_demand(values: Values) -> Findings:
    """The scheduler in memory counts one queue for all pools."""
    pools = [pool["name"] for _, pool in pools_of(values) if scaling_of(pool, values) != "none"]
    if values["nativelink_scheduler_backend"] == "memory" and len(pools) > 1:
        yield (
            "nativelink_worker_pools",
            f"{', '.join(pools)} follow one shared demand, because a scheduler in memory counts only one queue",
            "set nativelink_scheduler_backend to redis, or make a cluster entry for each pool",
        )


SLOT_LEAST = 1024**3
"""Memory that an action should have at least: what a compiler takes for a large C++ source."""
SLOTS_MOST = 64
"""NativeLink looks at every process of the pod for each running action, again and again: with 280 it did nothing else
and missed its probes (seen on v1.6.6)."""


def crowded_slots(values: Values) -> Findings:
    """A worker ends as a whole when its actions need more memory than it has (cgroup v2). Many of them slow it down."""
    for path, pool in pools_of(values):
        slots, memory = pool["slots"] or cpus_of(pool), memory_of(pool)
        if slots > SLOTS_MOST:
            yield (
                f"{path}.slots",
                f"{slots} actions at once keep NativeLink itself busy, so that it may miss its probes and be restarted",
                f"write {SLOTS_MOST} or less, and more workers",
            )
        if memory and slots > 1 and memory // slots < SLOT_LEAST:
            yield (
                f"{path}.slots",
                f"{slots} actions at once share {size_text(memory)} of memory, {size_text(memory // slots)} each, "
                "and one that needs more may end all of them",
                "lower slots, or raise the memory of resources",
            )


def open_edge(values: Values) -> Findings:
    """NativeLink asks nobody who he is."""
    if values["nativelink_edge"] == "none" or values["nativelink_edge_client_ca_secret"]:
        return
    if values["nativelink_edge_tls_secret"]:
        yield (
            "nativelink_edge_client_ca_secret",
            "is empty: whoever reaches the address can use the cache and run commands",
            "keep the load balancer internal, or let the edge ask for certificates",
        )
    else:
        yield (
            "nativelink_edge_tls_secret",
            "is empty: clients speak plain text, and whoever reaches the address can use the cache and run commands",
            "name a TLS Secret, and keep the load balancer internal",
        )


def last_value_wins(values: Values) -> Findings:
    """Of several values of a property NativeLink's scheduler keeps the last (v1.6.6: source)."""
    for path, pool in pools_of(values):
        for name, value in pool["platform_properties"].items():
            if isinstance(value, list) and len(value) > 1:
                yield (
                    f"{path}.platform_properties.{name}",
                    f"has {len(value)} values, of which NativeLink's scheduler keeps the last, {value[-1]}",
                    "write one, or make a pool for each",
                )


# Seconds that a poll may take besides the interval when nothing even refuses: two timeouts of 3 s, and as much again.
FAILING_POLL = 11


def hasty_zero(values: Values) -> Findings:
    """KEDA 2.21.0 takes a poll that fails for no demand when another one fails at the same time (seen; ErrCacheClosed).

    That counts towards the cooldown until KEDA gives the source up: 10 failing polls by default, a minute or two.
    """
    for path, pool in pools_of(values):
        sure = failing_polls(pool) * (pool["polling_interval"] + FAILING_POLL)
        if scaling_of(pool, values) == "keda" and pool["min_replicas"] == 0 and pool["cooldown_period"] < sure:
            yield (
                f"{path}.cooldown_period",
                f"is {pool['cooldown_period']} s: a pool at work may go to zero while its source of demand is lost, "
                "before KEDA is sure of that",
                f"write {sure} or more",
            )


def needless_low_latency(values: Values) -> Findings:
    """A version that sets TCP_NODELAY itself needs no help of the nodes."""
    version = values["nativelink_version"]
    if values["low_latency_enabled"] and versions.tcp_nodelay(version):
        yield (
            "low_latency_enabled",
            f"is no longer needed with NativeLink {version}, which sets TCP_NODELAY itself",
            "take it out: the next run removes what it made",
        )


NOTICES: tuple[Callable[[Values], Findings], ...] = (
    shared_demand,
    crowded_slots,
    open_edge,
    last_value_wins,
    hasty_zero,
    needless_low_latency,
)

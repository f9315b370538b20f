"""The table of all that depends on NativeLink's version. Nothing else in the project asks for a version.

A new version is a row here, a choice in roles/nativelink/meta/argument_specs.yml, and the default when it is known to
work.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Version:
    """Names of configuration fields that changed, and what the version can do."""

    max_action_timeout: str
    max_upload_timeout: str
    # Before v1.6.5 schedulers on one Redis lose actions (TraceMachina/nativelink 2680 and 2685), and v1.3.2 lacks the
    # fallback_match_interval_s by which guard.sh tells a living one.
    redis_backend: bool
    # A matching pass now and then, for wake-ups that got lost.
    fallback_match_interval: bool
    # Small blobs that are wanted at the same time are read by one call.
    read_batching: bool
    # True if it sets TCP_NODELAY on the connections that it accepts. If not, small answers wait 40 ms (seen on both).
    tcp_nodelay: bool
    # Its metrics count requests, matching passes, workers and health checks, too (v1.3.2: only actions and the cache).
    counts: bool


VERSIONS = {
    "v1.6.6": Version(
        "max_action_timeout_s",
        "max_upload_timeout_s",
        redis_backend=True,
        fallback_match_interval=True,
        read_batching=True,
        tcp_nodelay=False,
        counts=True,
    ),
    "v1.3.2": Version(
        "max_action_timeout",
        "max_upload_timeout",
        redis_backend=False,
        fallback_match_interval=False,
        read_batching=False,
        tcp_nodelay=False,
        counts=False,
    ),
}


def redis_backend(version: str) -> bool:
    """Return whether schedulers of this supported version can have their queue in Redis."""
    return VERSIONS[version].redis_backend


def tcp_nodelay(version: str) -> bool:
    """Return whether this supported version sets TCP_NODELAY on the connections that it accepts."""
    return VERSIONS[version].tcp_nodelay

"""Free ports of the loopback address."""

import contextlib
import itertools
import random
import socket

from testbed.waiting import ClusterError

# The kernel gives the ports above to outgoing connections, so one of them may be taken at any moment.
_RANGE = range(12000, 32000)


def free_ports(count: int) -> list[int]:
    """Return random ports on which nothing listens, all of them different. ClusterError if there are not enough."""
    free = list(itertools.islice(filter(is_free, random.sample(_RANGE, len(_RANGE))), count))
    if len(free) < count:
        raise ClusterError(f"there are no {count} free ports between {_RANGE.start} and {_RANGE.stop}")
    return free


def free_port() -> int:
    """Return a random port on which nothing listens."""
    return free_ports(1)[0]


def is_free(port: int) -> bool:
    """Return True if nothing listens on a port. Connections that have ended do not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return True
    return False

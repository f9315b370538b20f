"""Which CAS pod has which keys: the ranges of a `shard` store, as a function of the number of pods.

NativeLink makes a number of 32 bits from each digest. The entries of the store divide these numbers among themselves in
their order, in proportion to their weights, and one pod may have several entries.
"""

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

Layout = Sequence[tuple[int, int]]
"""The number of a pod and a weight, for each entry."""

# NativeLink scales the weights to this sum. Weights with this sum stay as they are.
KEYS = 2**32 - 1
# The entries grow with the square of the pods: 30 pods have up to 412, and a ConfigMap holds 500.
MOST_GROWN = 30


def layout(pods: int, began: int = 0) -> Layout:
    """The layout of a number of pods, in a cluster that began with `began` pods. Both are at least 1.

    It begins with a plain list. Each further pod takes an equal part from every earlier one, so that no other key
    moves. If `began` is 0 or not less than `pods`, the layout is the plain list of all pods.
    """
    ranges = [(pod, 1) for pod in range(min(pods, began or pods))]
    if len(ranges) == pods:
        return ranges
    ranges = _scaled(ranges)
    for new in range(began, pods):
        for pod in range(new):
            _take(ranges, pod, sum(keys for owner, keys in ranges if owner == pod) - KEYS // (new + 1), new)
    return ranges


def layout_of(values: Mapping[str, Any]) -> Layout:
    """The layout of a cluster, from its effective variables; empty if its content is in a bucket."""
    if values["nativelink_cas_store"] != "volumes":
        return []
    pods = values["nativelink_cas_shards"] or values["nativelink_cas_replicas"]
    return layout(pods, values["nativelink_cas_layout_from"])


def next_of(values: Mapping[str, Any]) -> Layout:
    """The layout to which the keys of a cluster move; its own if none do."""
    pods = values["nativelink_cas_shards_next"]
    return layout(pods, values["nativelink_cas_layout_from"]) if pods else layout_of(values)


def merged(before: Layout, after: Layout) -> list[tuple[int, int, int]]:
    """The pods that have keys before and after a change of the layout, and a weight, for each entry of both."""
    if before == after:
        return [(pod, pod, weight) for pod, weight in before]
    last = sorted({*ends(before), *ends(after)})
    return [(owner(before, end), owner(after, end), end - start) for start, end in pairwise([0, *last])]


def moved(before: Layout, after: Layout) -> float:
    """The part of all keys, from 0 to 1, that another pod has after a change of the layout."""
    return sum(keys for old, new, keys in merged(before, after) if old != new) / KEYS


def owner(ranges: Layout, key: int) -> int:
    """The pod that has a key."""
    return ranges[bisect_left(ends(ranges), key)][0]


def ends(ranges: Layout) -> list[int]:
    """The last key of each entry, as NativeLink computes it: the last entry gets what rounding leaves."""
    total = sum(weight for _unused, weight in ranges)
    return [*accumulate(KEYS * weight // total for _unused, weight in ranges[:-1]), KEYS]


def host(pod: int, namespace: str) -> str:
    """The name by which other pods reach one."""
    return f"nativelink-cas-{pod}.nativelink-cas-headless.{namespace}.svc"


def parsed(configuration: str) -> Layout:
    """The layout in a rendered cas.json5; empty if there is none, or if it has the markers of a merge."""
    if "<<<<<<<" in configuration:
        return []
    found = re.findall(r'weight: (\d+),.*?"grpc://nativelink-cas-(\d+)\.', listed(configuration), re.DOTALL)
    return [(int(pod), int(weight)) for weight, pod in found]


def listed(configuration: str) -> str:
    """The list of shards in a rendered cas.json5."""
    return configuration.partition('"CAS_SHARD"')[2].partition('"AC_SHARD"')[0]


def _scaled(ranges: Layout) -> list[tuple[int, int]]:
    return [
        (pod, end - start) for (pod, _unused), (start, end) in zip(ranges, pairwise([0, *ends(ranges)]), strict=True)
    ]


def _take(ranges: list[tuple[int, int]], pod: int, keys: int, new: int) -> None:
    """Give a pod's keys to the new pod: a part of its largest range, beside a range of the new pod if one is before it.

    The largest range suffices, because a pod has fewer ranges than there are pods.
    """
    place = max((each for each, found in enumerate(ranges) if found[0] == pod), key=lambda each: ranges[each][1])
    rest = (pod, ranges[place][1] - keys)
    if place and ranges[place - 1][0] == new:
        ranges[place - 1 : place + 1] = [(new, ranges[place - 1][1] + keys), rest]
    else:
        ranges[place : place + 1] = [rest, (new, keys)]

"""Settings that are legal but may surprise. Each notice is a function that yields (variable, problem, remedy)."""

from collections.abc import Callable

from .. import versions
from ..derived import cpus_of, derived_properties, failing_polls, isolation_of, memory_of, scaling_of
from ..findings import Findings
from ..quantities import bytes_of, size_text
from ..specs import Values
from .rules import pools_of


def shared_demand(values: Values) -> Findings:
    """The scheduler in memory has one queue length for all pools."""
    pools = [pool["name"] for _unused, pool in pools_of(values) if scaling_of(pool, values) != "none"]
    if values["nativelink_scheduler_backend"] == "memory" and len(pools) > 1:
        problem = f"{', '.join(pools)} scale with the same demand, because a scheduler in memory has one queue for all"
        remedy = "set nativelink_scheduler_backend to redis, or make a cluster for each pool"
        yield "nativelink_worker_pools", problem, remedy


def reserving_actions(values: Values) -> Findings:
    """A scheduler in memory does not tell what actions reserve. It is at least 1 of a property that they ask for."""
    declared = values["nativelink_scheduler_platform_properties"]
    for path, pool in pools_of(values):
        follows = values["nativelink_scheduler_backend"] == "memory" and scaling_of(pool, values) != "none"
        if not follows or pool["query"] or pool["target"]:
            continue
        slots = pool["slots"] or cpus_of(pool)
        for name, offer in {**derived_properties(pool, declared), **pool["platform_properties"]}.items():
            room = int(offer[-1] if isinstance(offer, list) else offer) if declared.get(name) == "minimum" else slots
            if room < slots:
                problem = (
                    f"is {slots}, but a worker offers {name}={room}, and a scheduler in memory does not tell what "
                    f"actions reserve, so actions that ask for {name} get too few workers"
                )
                remedy = f"set target to {max(1, room)}, or nativelink_scheduler_backend to redis"
                yield f"{path}.slots", problem, remedy


def idle_headroom(values: Values) -> Findings:
    """Workers that are added take the room of placeholders."""
    for path, pool in pools_of(values):
        if pool["headroom"] and scaling_of(pool, values) == "none":
            problem = (
                f"is {pool['headroom']}, but the pool does not scale, so only a worker that is replaced uses the room"
            )
            yield f"{path}.headroom", problem, "remove it, or set scaling to keda or hpa"


SLOT_LEAST = 1024**3
"""The least bytes of memory for an action: a compiler needs as much for a large C++ source."""
SLOTS_MOST = 64
"""The most actions for a worker. NativeLink polls every process of the pod for each running action: with 280 actions
v1.6.6 did nothing else and missed its probes."""


def crowded_slots(values: Values) -> Findings:
    """All actions of a worker end if they need more memory than it has (cgroup v2). Many actions slow it down."""
    for path, pool in pools_of(values):
        slots, memory = pool["slots"] or cpus_of(pool), memory_of(pool)
        if slots > SLOTS_MOST:
            problem = f"with {slots} concurrent actions NativeLink may be too busy to answer its probes, and restart"
            yield f"{path}.slots", problem, f"write {SLOTS_MOST} or less, and use more workers"
        if memory and slots > 1 and memory // slots < SLOT_LEAST:
            problem = (
                f"{slots} concurrent actions share {size_text(memory)} of memory, {size_text(memory // slots)} each, "
                "and an action that needs more may end all of them"
            )
            yield f"{path}.slots", problem, "lower slots, or raise the memory of resources"


def forging_actions(values: Values) -> Findings:
    """What NativeLink's own user may do, an action of that user may do. Any one of them can fool the whole farm."""
    for path, pool in pools_of(values):
        if isolation_of(pool, values) == "none":
            problem = (
                "is none, so each action can write action results for all builds, act as a worker, and change the "
                "inputs of later actions"
            )
            yield f"{path}.isolation", problem, "set isolation to users"
    if values["nativelink_worker_access"] == "network_policy" and not values["nativelink_mutual_tls_secret"]:
        problem = "is network_policy, so each action can write action results for all builds, and act as a worker"
        yield "nativelink_worker_access", problem, "write node, which needs node_agent_guard"


def readable_key(values: Values) -> Findings:
    """Without isolation actions have the user of NativeLink, which has to read its key."""
    for path, pool in pools_of(values):
        if values["nativelink_mutual_tls_secret"] and isolation_of(pool, values) == "none":
            problem = "is none, so each action can read the key of its worker"
            yield f"{path}.isolation", problem, "set isolation to users, or do not rely on nativelink_mutual_tls_secret"


def evicted_first(values: Values) -> Findings:
    """A node that is short of memory first evicts pods that use more than they request. A worker does not drain."""
    everything = [("nativelink_cas_resources", values["nativelink_cas_resources"])]
    everything += [(f"{path}.resources", pool["resources"]) for path, pool in pools_of(values)]
    for path, resources in everything:
        request, limit = ((resources.get(kind) or {}).get("memory") for kind in ("requests", "limits"))
        if request and limit and bytes_of(request) < bytes_of(limit):
            problem = (
                f"is {request}, less than the limit ({limit}): a node that is short of memory first evicts pods that "
                "use more than they request"
            )
            yield f"{path}.requests.memory", problem, f"write {limit}"


def open_edge(values: Values) -> Findings:
    """NativeLink itself does not authenticate clients."""
    if values["nativelink_edge"] != "none" and values["nativelink_edge_open"]:
        problem = (
            f"says {values['nativelink_edge_open']!r}: everyone who reaches the edge uses the cache and runs commands"
        )
        yield "nativelink_edge_open", problem, "set nativelink_edge_tls_secret and nativelink_edge_client_ca_secret"


def last_value_wins(values: Values) -> Findings:
    """NativeLink's scheduler keeps only the last value of a property (v1.6.6: source)."""
    for path, pool in pools_of(values):
        for name, value in pool["platform_properties"].items():
            if isinstance(value, list) and len(value) > 1:
                problem = f"has {len(value)} values, but NativeLink's scheduler keeps only the last one, {value[-1]}"
                yield f"{path}.platform_properties.{name}", problem, "write one value, or make a pool for each"


# Seconds in addition to the interval that a poll may take without a connection: two timeouts of 3 s, and a margin.
FAILING_POLL = 11


def hasty_zero(values: Values) -> Findings:
    """If two polls fail at the same time, KEDA 2.21.0 treats one as no demand (ErrCacheClosed).

    That counts towards the cooldown until KEDA marks the source as failed, after 10 polls by default.
    """
    for path, pool in pools_of(values):
        failed_after = failing_polls(pool) * (pool["polling_interval"] + FAILING_POLL)
        if scaling_of(pool, values) == "keda" and pool["min_replicas"] == 0 and pool["cooldown_period"] < failed_after:
            problem = (
                f"is {pool['cooldown_period']} s, so if the source of demand fails, a pool at work may scale to zero "
                "before KEDA notices"
            )
            yield f"{path}.cooldown_period", problem, f"write {failed_after} or more"


def nativelink_version(values: Values) -> Findings:
    """Return what is known of another version than the newest one, and that a newer one is untested."""
    version = values["nativelink_version"]
    found, remedy = versions.faults(version, refused=False), f"write {versions.NEWEST}"
    if versions.is_newer(version):
        found = [f"is newer than {versions.NEWEST} and gets its configuration", *found]
        remedy = "run make conformance with its image before you push (docs/conformance.md)"
    if found:
        yield "nativelink_version", f"{version} {', '.join(found)}", remedy


def needless_low_latency(values: Values) -> Findings:
    """NativeLink versions that set TCP_NODELAY do not need it from the nodes."""
    version = values["nativelink_version"]
    if values["node_agent_low_latency"] and versions.row(version).tcp_nodelay:
        problem = f"is no longer needed with NativeLink {version}, which sets TCP_NODELAY itself"
        yield "node_agent_low_latency", problem, "remove it; the next run takes it off the nodes"


NOTICES: tuple[Callable[[Values], Findings], ...] = (
    shared_demand,
    reserving_actions,
    idle_headroom,
    crowded_slots,
    forging_actions,
    readable_key,
    evicted_first,
    open_edge,
    last_value_wins,
    hasty_zero,
    nativelink_version,
    needless_low_latency,
)

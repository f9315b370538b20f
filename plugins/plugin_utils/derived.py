"""What follows from the variables of a cluster, for the validation, the actions and the templates alike."""

from collections.abc import Mapping
from typing import Any

from .quantities import bytes_of, cpu_of, part_of

# A store of executable inputs keeps a second copy of each, which `max_bytes` does not count (v1.6.6: source).
COPIES = 2
# KEDA polls without an answer for this many seconds before it holds a pool, or wakes one from zero. If the connection
# is not even refused, each of the two numbers takes 3 s more (KEDA's HTTP timeout), which is a minute by default.
LOST = 10
# The part of its memory limit that the bundled Redis may fill. The rest is for connections, and for what changes while
# Redis rewrites its file.
REDIS_FILLS = "70%"
# Labels of spot nodes, and whether the nodes keep other pods away by a taint of the same key and value.
SPOT = {
    "karpenter": ("karpenter.sh/capacity-type", "spot", False),
    "eks": ("eks.amazonaws.com/capacityType", "SPOT", False),
    "gke": ("cloud.google.com/gke-spot", "true", True),
    "aks": ("kubernetes.azure.com/scalesetpriority", "spot", True),
}


def redis_may_fill(limit: str) -> int:
    """Bytes that the bundled Redis may fill of its memory limit, a quantity."""
    return part_of(REDIS_FILLS, bytes_of(limit))


def scaling_of(pool: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """Return what scales a pool (its defaults filled in) of a cluster: `keda`, `hpa` or `none`."""
    return pool["scaling"] or known["nativelink_scaling"]


def isolation_of(pool: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """Return the isolation of a pool's actions (its defaults filled in): `users` or `none`."""
    return pool["isolation"] or known["nativelink_worker_isolation"]


def node_selector_of(pool: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels of the nodes that a pool (its defaults filled in) may use."""
    return {**spot(pool["spot"])[0], **pool["node_selector"]}


def cpus_of(pool: Mapping[str, Any]) -> int:
    """Whole CPUs that a worker of a pool (its defaults filled in) may use: its limit or else its request, never 0."""
    return max(1, cpu_of(_most(pool, "cpu") or 1) // 1000)


def memory_of(pool: Mapping[str, Any]) -> int:
    """Bytes of memory that a worker of a pool may use: its limit or else its request, 0 where it says neither."""
    return bytes_of(_most(pool, "memory") or 0)


def promised_memory(pool: Mapping[str, Any]) -> int:
    """Bytes of memory that a worker of a pool has for sure: its request or else its limit, 0 where it says neither."""
    requests = pool["resources"].get("requests") or {}
    return bytes_of(requests.get("memory") or 0) or memory_of(pool)


def derived_properties(pool: Mapping[str, Any], declared: Mapping[str, str]) -> dict[str, list[str]]:
    """The platform properties that a pool offers without saying so, as far as the scheduler declares them.

    v1.6.6 lets every action wait that asks for a property that is declared `minimum`, `priority` or `exact` and that no
    worker offers.
    """
    found = {"OSFamily": "Linux", "cpu_count": str(cpus_of(pool))}
    if memory := promised_memory(pool):
        found["memory_kb"] = str(memory // 1024)
    found = {name: text for name, text in found.items() if declared.get(name, "ignore") != "ignore"}
    if pool["persistent_workers"]:
        found["supports-workers"] = "1"
    return {name: [text] for name, text in found.items()}


def failing_polls(pool: Mapping[str, Any]) -> int:
    """Return the number of unanswered polls after which KEDA holds a pool (its defaults filled in), or wakes it."""
    return max(3, LOST // pool["polling_interval"])


def _most(pool: Mapping[str, Any], resource: str) -> Any:
    """A worker's limit of a resource, or else its request; None where it says neither."""
    limits, requests = (pool["resources"].get(kind) or {} for kind in ("limits", "requests"))
    return limits.get(resource, requests.get(resource))


def spot(kind: str) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Node selector and tolerations for spot nodes of a kind, which may be none."""
    if not kind:
        return {}, []
    key, value, tainted = SPOT[kind]
    toleration = {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}
    return {key: value}, [toleration] if tainted else []


def wanted_secrets(known: Mapping[str, Any]) -> list[dict[str, str]]:
    """The Secrets that the tree names and only the user can make: `namespace`, `name`, and `what` each holds."""
    ours, workers = known["nativelink_namespace"], known["nativelink_workers_namespace"]
    edge = known["nativelink_edge"] != "none"
    redis = known["nativelink_scheduler_backend"] == "redis" and known["nativelink_redis_provider"] == "existing"
    keys = known["nativelink_cas_store"] == "object_store" and known["nativelink_object_store_identity"] == "secret"
    made = known["nativelink_mutual_tls_issuer"] or known["worker_certificates_create"]
    mutual_tls = "" if made else known["nativelink_mutual_tls_secret"]
    wanted = [
        (ours, known["nativelink_edge_tls_secret"] if edge else "", "the certificate of the edge"),
        (ours, known["nativelink_edge_client_ca_secret"] if edge else "", "the CA of the clients"),
        (ours, known["nativelink_edge_client_crl_secret"] if edge else "", "the list of revoked certificates"),
        (ours, known["nativelink_redis_secret_name"] if redis else "", "the password of Redis"),
        (ours, known["nativelink_object_store_secret_name"] if keys else "", "the keys of the object store"),
        (ours, mutual_tls, "the certificate of CAS and scheduler for mutual TLS"),
        (workers, mutual_tls, "the certificate of the workers for mutual TLS"),
    ]
    for entry in known["nativelink_edge_access"] if edge else []:
        wanted.append((ours, entry.get("keys", ""), f"the API keys of clients with the role {entry['role']}"))
    for name in known["nativelink_image_pull_secrets"]:
        wanted += [(namespace, name, "the credentials for pulling images") for namespace in (ours, workers)]
    return [{"namespace": namespace, "name": name, "what": what} for namespace, name, what in wanted if name]

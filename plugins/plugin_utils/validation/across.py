"""Rules between clusters."""

from __future__ import annotations

from collections.abc import Mapping

from .. import kubeconfig
from ..findings import Finding
from ..specs import Values


def shared_clusters(clusters: Mapping[str, Values]) -> list[Finding]:
    """Two hosts that would write into the same namespace of the same API server, findings of both."""
    owners: dict[tuple[str, str], list[tuple[str, str]]] = {}
    read: dict[str, Mapping[str, str]] = {}
    for cluster, values in clusters.items():
        path, context = values.get("cluster_kubeconfig"), values.get("cluster_context")
        if not path or not context:
            continue
        if path not in read:
            try:
                read[path] = kubeconfig.servers(path)
            except kubeconfig.KubeconfigError:
                read[path] = {}  # the live checks say so
        server = read[path].get(context) or f"context {context} of {path}"
        low_latency = ("low_latency_namespace",) if values.get("low_latency_enabled") else ()
        for name in ("nativelink_namespace", "nativelink_workers_namespace", *low_latency):
            if name in values:
                owners.setdefault((server, values[name]), []).append((cluster, name))
    faults = {}
    for (server, namespace), users in owners.items():
        for cluster, name in users:
            if other := next((other for other, _ in users if other != cluster), None):
                problem = f"{namespace} on {server} is also that of {other}"
                fix = "give one of them other namespaces or another cluster"
                # One line is enough: whoever shares one namespace shares both.
                faults.setdefault(cluster, Finding(cluster, name, problem, fix))
    return list(faults.values())


def shared_queues(clusters: Mapping[str, Values]) -> list[Finding]:
    """Two hosts that would have one queue: the workers of each would run actions whose inputs the other's CAS has."""
    owners: dict[str, list[str]] = {}
    for cluster, values in clusters.items():
        used = values.get("nativelink_scheduler_backend") == "redis"
        if used and values.get("nativelink_redis_provider") == "existing" and values.get("nativelink_redis_address"):
            owners.setdefault(values["nativelink_redis_address"], []).append(cluster)
    faults = []
    for address, users in owners.items():
        for cluster in users:
            if other := next((other for other in users if other != cluster), None):
                problem = f"{address} is also that of {other}, and would be one queue for both"
                faults.append(
                    Finding(cluster, "nativelink_redis_address", problem, "give each cluster a Redis of its own")
                )
    return faults

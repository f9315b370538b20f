"""Rules between clusters."""

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from .. import kubeconfig
from ..findings import Finding
from ..specs import Values, namespaces


def shared_clusters(clusters: Mapping[str, Values]) -> list[Finding]:
    """Clusters of the inventory that use the same namespace of the same API server: a finding for each."""
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
                read[path] = {}  # the live checks report it
        server = read[path].get(context) or f"context {context} of {path}"
        for name in namespaces(values):
            if name in values:
                owners.setdefault((server, values[name]), []).append((cluster, name))
    faults: dict[str, Finding] = {}
    for (server, namespace), users in owners.items():
        for (cluster, name), other in _others(users):
            problem = f"the cluster {other} also uses {namespace} on {server}"
            remedy = "give one of them other namespaces or another API server"
            if name == "node_agent_namespace":
                switches = "node_agent_guard and node_agent_low_latency"
                remedy = f"set {switches} to false in one of them, because one agent serves all"
            # One finding for each cluster is enough: clusters that share one namespace usually share all.
            faults.setdefault(cluster, Finding(cluster, name, problem, remedy))
    return list(faults.values())


def shared_queues(clusters: Mapping[str, Values]) -> list[Finding]:
    """Clusters with the same Redis, and therefore one queue: workers would run actions whose inputs another CAS has."""
    name, remedy = "nativelink_redis_address", "give each cluster a Redis of its own"
    owners: dict[str, list[tuple[str, str]]] = {}
    for cluster, values in clusters.items():
        used = values.get("nativelink_scheduler_backend") == "redis"
        if used and values.get("nativelink_redis_provider") == "existing" and values.get(name):
            owners.setdefault(values[name], []).append((cluster, name))
    return [
        Finding(cluster, name, f"the cluster {other} also uses {address}, so both would have one queue", remedy)
        for address, users in owners.items()
        for (cluster, _unused), other in _others(users)
    ]


def _others(users: list[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], str]]:
    """Each of the users, a cluster and its variable, that has another cluster beside it, and the first such cluster."""
    for user in users:
        if other := next((other for other, _unused in users if other != user[0]), None):
            yield user, other


def shared_paths(clusters: Mapping[str, Values]) -> list[Finding]:
    """Clusters whose engine would apply another cluster's folder, or a folder that two clusters share."""
    faults = []
    for cluster, values in clusters.items():
        path = values.get("gitops_path", "")
        if not path or values.get("gitops_provider", "none") == "none" or PurePosixPath(path).name == cluster:
            continue
        for other, theirs in clusters.items():
            if other != cluster and theirs.get("gitops_path") and _same_folder(values, theirs):
                problem = f"is {path}, which is also the folder of the cluster {other}"
                faults.append(Finding(cluster, "gitops_path", problem, f"write clusters/{cluster}"))
                break
    return faults


def _same_folder(ours: Values, theirs: Values) -> bool:
    """Return whether both use one folder. A cluster without an engine has no repository, so only paths are compared."""
    same_repository = theirs.get("gitops_provider") == "none" or all(
        ours.get(name) == theirs.get(name) for name in ("gitops_repository", "gitops_revision")
    )
    return same_repository and PurePosixPath(ours["gitops_path"]) == PurePosixPath(theirs["gitops_path"])

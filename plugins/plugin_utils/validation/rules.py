"""Rules between the variables of one cluster: a function each, that yields (variable, problem, remedy)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .. import specs, versions
from ..context import COPIES, derived_properties, redis_may_fill, scaling_of
from ..findings import Findings
from ..quantities import QuantityError, bytes_of, cpu_of, part_of, size_text
from ..specs import Values
from .formats import IMAGE, SCP, nearest, one_of, shown
from .types import CheckedValues, item_path


def pools_of(values: Values) -> Iterator[tuple[str, Values]]:
    """Each pool's path and the pool, its defaults filled in."""
    filled = specs.with_defaults({"nativelink_worker_pools": values["nativelink_worker_pools"]})
    for index, pool in enumerate(filled["nativelink_worker_pools"]):
        yield item_path("nativelink_worker_pools", index, pool), pool


def duplicate_pools(values: Values) -> Findings:
    """Two pools of one name would be one Deployment."""
    names = [pool["name"] for _, pool in pools_of(values)]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"nativelink_worker_pools[{name}].name", f"{names.count(name)} pools have this name", "rename the others"


def min_over_max(values: Values) -> Findings:
    """The least may not be more than the most."""
    for path, pool in pools_of(values):
        if pool["min_replicas"] > pool["max_replicas"]:
            yield (
                f"{path}.min_replicas",
                f"is {pool['min_replicas']}, more than max_replicas, {pool['max_replicas']}",
                "lower it, or raise max_replicas",
            )


def resources(values: Values) -> Findings:
    """Quantities that parse, of resources that exist, requests within limits."""
    everything = [(name, value) for name, value in values.items() if name.endswith("_resources")]
    everything += [(f"{path}.resources", pool["resources"]) for path, pool in pools_of(values)]
    for path, value in everything:
        amounts = {kind: dict(_amounts(value.get(kind) or {})) for kind in ("requests", "limits")}
        for kind, found in amounts.items():
            yield from (
                (f"{path}.{kind}.{name}", *amount) for name, amount in found.items() if isinstance(amount, tuple)
            )
        for name, request in amounts["requests"].items():
            limit = amounts["limits"].get(name)
            if isinstance(request, int) and isinstance(limit, int) and request > limit:
                problem = f"is {value['requests'][name]}, more than the limit, {value['limits'][name]}"
                yield f"{path}.requests.{name}", problem, "lower it, or raise the limit"


def overcommitted(name: str) -> bool:
    """Whether the limit of a resource may be more than its request, unlike that of a device or of huge pages."""
    return "/" not in name and not name.startswith("hugepages-")


def _amounts(amounts: Values) -> Iterator[tuple[str, int | tuple[str, str]]]:
    for name, amount in amounts.items():
        if not overcommitted(name):
            continue  # kubernetes.extended_resources
        if name not in ("cpu", "memory", "ephemeral-storage"):
            near = nearest(name, ("cpu", "memory", "ephemeral-storage"), 0.5)
            yield name, ("is no resource of a container", one_of(near, ("cpu", "memory", "ephemeral-storage")))
            continue
        try:
            yield name, cpu_of(amount) if name == "cpu" else bytes_of(amount)
        except QuantityError as error:
            yield name, (str(error), "write 4 or 500m" if name == "cpu" else "write a size such as 8Gi")


def scheduler_backend(values: Values) -> Findings:
    """Schedulers in memory are separate queues; on Redis older ones lose actions and cannot be guarded."""
    count = values["nativelink_scheduler_replicas"]
    if values["nativelink_scheduler_backend"] != "redis":
        if count > 1:
            yield (
                "nativelink_scheduler_replicas",
                f"is {count}, and schedulers in memory are as many separate queues",
                "write 1, or set nativelink_scheduler_backend to redis",
            )
    elif not versions.redis_backend(values["nativelink_version"]):
        yield (
            "nativelink_scheduler_backend",
            f"is redis, for which NativeLink {values['nativelink_version']} is too old",
            "write memory, or a newer nativelink_version",
        )


def redis(values: Values) -> Findings:
    """An existing Redis has an address, and the bundled one needs none."""
    if values["nativelink_scheduler_backend"] != "redis":
        return
    address, bundled = values["nativelink_redis_address"], values["nativelink_redis_provider"] == "bundled"
    if bundled and address:
        yield (
            "nativelink_redis_address",
            "is set, and the bundled Redis is used instead",
            "take it out, or set nativelink_redis_provider to existing",
        )
    if not bundled and not address:
        yield (
            "nativelink_redis_address",
            "is empty, and nativelink_redis_provider is existing",
            "write its host:port, or set nativelink_redis_provider to bundled",
        )
    if bundled and not values["nativelink_redis_secret_name"]:
        yield "nativelink_redis_secret_name", "is empty, and the bundled Redis has a password", "name a Secret for it"


def redis_memory(values: Values) -> Findings:
    """What the bundled Redis may fill is reserved for it: beyond its request it is among the first to be evicted."""
    if values["nativelink_scheduler_backend"] != "redis" or values["nativelink_redis_provider"] != "bundled":
        return
    resources = values["nativelink_redis_resources"]
    limit, request = (resources.get(kind, {}).get("memory") for kind in ("limits", "requests"))
    if limit and request and bytes_of(request) < redis_may_fill(limit):
        least = -(-redis_may_fill(limit) // 2**20)
        yield (
            "nativelink_redis_resources.requests.memory",
            f"is {request}, less than the {least}Mi that Redis may fill (70 % of its limit, {limit})",
            f"write {least}Mi or more, or lower the limit",
        )


STORE_PERCENT = 90
"""What both stores may take of a CAS volume. The rest: the file system's own, and what comes in before evictions."""


def stores_fit_volume(values: Values) -> Findings:
    """CAS and AC share each CAS pod's volume."""
    volume = bytes_of(values["nativelink_cas_volume_size"])
    cas = part_of(values["nativelink_cas_store_size"], volume)
    ac = part_of(values["nativelink_cas_ac_store_size"], volume)
    room = volume * STORE_PERCENT // 100
    if cas + ac > room:
        yield (
            "nativelink_cas_store_size",
            f"{size_text(cas)}, and {size_text(ac)} for nativelink_cas_ac_store_size, are more than {size_text(room)} "
            f"({STORE_PERCENT} % of the volume's {size_text(volume)}; the rest is for the file system and evictions)",
            "lower one of them, or raise nativelink_cas_volume_size",
        )


SCRATCH_PERCENT = 10
SCRATCH_LEAST = 1024**3
"""What a worker's running actions have at least beside the fast store: so much of the scratch, and never below 1Gi."""


def scratch_fits_store(values: Values) -> Findings:
    """Fast store and the actions' directories share one scratch volume."""
    for path, pool in pools_of(values):
        scratch = bytes_of(pool["scratch_size"])
        store = part_of(pool["fast_store_size"], scratch)
        room = max(scratch * SCRATCH_PERCENT // 100, SCRATCH_LEAST)
        if COPIES * store + room > scratch:
            yield (
                f"{path}.scratch_size",
                f"is {size_text(scratch)}, less than {size_text(COPIES * store)} for the fast store (its "
                f"{size_text(store)}, and as much again for copies of executable inputs) "
                f"and {size_text(room)} for running actions",
                "raise it, or lower fast_store_size",
            )


def declared_properties(values: Values) -> Findings:
    """The scheduler refuses properties that it doesn't declare, and compares `minimum` ones as numbers."""
    declared = values["nativelink_scheduler_platform_properties"]
    kinds = ("exact", "minimum", "priority", "ignore")
    for name, kind in declared.items():
        if kind not in kinds:
            path = f"nativelink_scheduler_platform_properties.{name}"
            yield path, f"is {shown(kind)}, which is no choice", one_of(nearest(str(kind), kinds, 0.6), kinds)
    for path, pool in pools_of(values):
        for name, value in pool["platform_properties"].items():
            items = value if isinstance(value, list) else [value]
            where = f"{path}.platform_properties.{name}"
            if name not in declared:
                near = nearest(name, tuple(declared), 0.7)
                fix = "declare it in nativelink_scheduler_platform_properties"
                fix = f"write {near}, or {fix}" if near else fix
                yield where, "is a property that the scheduler does not declare", fix
            elif declared[name] == "minimum" and not all(str(item).isdigit() for item in items):
                yield where, f"is {shown(value)}, and the scheduler compares it as a number", "write a whole number"
            elif not items or any(item is None or isinstance(item, dict | list) for item in items):
                yield where, f"is {shown(value)}", "write a text, a number or a list of them"


def offered_properties(values: CheckedValues) -> Findings:
    """An action that asks for a `minimum` or `priority` property that no worker offers waits (seen on v1.6.6)."""
    declared = values["nativelink_scheduler_platform_properties"]
    values.whole("nativelink_worker_pools")  # a pool with another fault may be the one that offers it
    offered: set[str] = set()
    for _, pool in pools_of(values):
        offered |= {*pool["platform_properties"], *derived_properties(pool, declared)}
    for name, kind in declared.items():
        if kind in ("minimum", "priority") and name not in offered:
            yield (
                f"nativelink_scheduler_platform_properties.{name}",
                f"is {kind}, and no pool offers it: an action that asks for it stays queued for ever, without an error",
                "offer it in the platform_properties of a pool, or write ignore",
            )


def edge(values: Values) -> Findings:
    """The routes need a controller that serves them, and NetworkPolicies that let it in."""
    wanted, provider = values["nativelink_edge"], values["ingress_provider"]
    serves = {"gateway": ("envoy-gateway", "existing"), "ingress": ("nginx", "existing"), "none": (provider,)}
    if provider not in serves[wanted]:
        yield (
            "nativelink_edge",
            f"is {wanted}, which ingress_provider {provider} does not serve",
            f"set ingress_provider to {' or '.join(serves[wanted])}, or nativelink_edge to something else",
        )
    elif wanted != "none" and not values["ingress_namespace"] and not values["nativelink_client_peers"]:
        fix = "write where the controller's proxies run, or list nativelink_client_peers: clients come in from there"
        yield "ingress_namespace", "is empty", fix
    if wanted == "ingress" and provider == "nginx":
        needs = {
            "nativelink_hostname": "write the host name that clients use",
            "nativelink_edge_tls_secret": "name a TLS Secret",
        }
        for name, fix in needs.items():
            if not values[name]:
                yield name, "is empty, and NGINX serves gRPC only with a host and TLS", fix
    if values["nativelink_edge_client_ca_secret"]:
        if wanted != "gateway" or provider != "envoy-gateway":
            problem = (
                "is set, and only a Gateway of ingress_provider envoy-gateway gets a policy that asks for certificates"
            )
            yield "nativelink_edge_client_ca_secret", problem, "take it out, and let your controller ask for them"
        elif not values["nativelink_edge_tls_secret"]:
            problem = "is set, and clients that speak plain text show no certificate"
            yield "nativelink_edge_client_ca_secret", problem, "name a TLS Secret in nativelink_edge_tls_secret"


def scaling(values: Values) -> Findings:
    """Each way to scale has its needs."""
    keda = values["keda_install"] == "none"
    if keda and values["nativelink_scaling"] == "keda":
        yield (
            "nativelink_scaling",
            "is keda, and keda_install is none",
            "set keda_install to release or existing, or nativelink_scaling to hpa or none",
        )
    for path, pool in pools_of(values):
        if keda and pool["scaling"] == "keda":
            fix = "set keda_install to release or existing, or scaling to hpa or none"
            yield f"{path}.scaling", "is keda, and keda_install is none", fix
        if scaling_of(pool, values) == "hpa" and pool["min_replicas"] == 0:
            yield f"{path}.min_replicas", "is 0, and an HPA cannot scale to zero", "write 1 or more, or scale with keda"
    hpa = [pool["name"] for _, pool in pools_of(values) if scaling_of(pool, values) == "hpa"]
    if hpa and not values["nativelink_metrics_namespaces"]:
        yield (
            "nativelink_metrics_namespaces",
            f"is empty, and the HPA of {', '.join(hpa)} follows metrics that nobody may read",
            "name the namespace of your Prometheus or metrics adapter",
        )


def prometheus(values: Values) -> Findings:
    """Queries need a Prometheus, and a Prometheus of somebody else must get in."""
    provider, address = values["nativelink_prometheus"], values["nativelink_prometheus_address"]
    for path, pool in pools_of(values):
        if not pool["query"]:
            continue
        if scaling_of(pool, values) != "keda":
            yield f"{path}.query", "is set, and the pool does not scale with keda", "take it out, or scale with keda"
        elif not address and provider != "bundled":
            fix = "write nativelink_prometheus_address, or set nativelink_prometheus to bundled"
            yield f"{path}.query", "is set, and there is no Prometheus to ask", fix
    if address and provider == "bundled":
        fix = "take it out, or set nativelink_prometheus to something else"
        yield "nativelink_prometheus_address", "is set, and the bundled Prometheus is used instead", fix
    if provider in ("operator", "annotations") and not values["nativelink_metrics_namespaces"]:
        yield (
            "nativelink_metrics_namespaces",
            f"is empty, and nativelink_prometheus is {provider}: your Prometheus may read nothing",
            "name its namespace",
        )


def gitops(values: Values) -> Findings:
    """An engine without a repository has nothing to sync, and its manifest says where it lives."""
    provider = values["gitops_provider"]
    if provider == "none":
        return
    if not values["gitops_repository"]:
        yield (
            "gitops_repository",
            f"is empty, and gitops_provider is {provider}",
            "write the repository's URL, or set gitops_provider to none",
        )
    if provider == "flux" and (found := SCP.fullmatch(values["gitops_repository"])):
        yield (
            "gitops_repository",
            f"is {found[0]}, a form that Flux does not take",
            f"write ssh://{found['host']}/{found['path']}",
        )
    upstream = {"argocd": "argocd", "flux": "flux-system"}[provider]
    if values["gitops_install"] == "release" and values["gitops_namespace"] != upstream:
        yield (
            "gitops_namespace",
            f"is {values['gitops_namespace']}, and the release of {provider} lives in {upstream}",
            "take it out, or set gitops_install to existing",
        )


def gitops_credentials(values: Values) -> Findings:
    """Credentials fit the repository's URL and the engine, and are given once."""
    provider, url = values["gitops_provider"], values["gitops_repository"]
    if provider == "none" or not url:
        return
    by_ssh = bool(SCP.fullmatch(url)) or url.startswith("ssh://")
    https, ssh = ("gitops_username", "gitops_password"), ("gitops_ssh_private_key_file",)
    trust = ("gitops_ca_file", "gitops_known_hosts_file")
    strangers = (*https, trust[0]) if by_ssh else (*ssh, trust[1])
    for name in strangers:
        if values[name]:
            address, other = ("an SSH", "HTTPS") if by_ssh else ("no SSH", "SSH")
            yield name, f"is set, and gitops_repository is {address} address", f"take it out, or write the {other} one"
    if values["gitops_secret_name"]:
        for name in (*https, *ssh, *(trust if provider == "flux" else ())):
            if values[name] and name not in strangers:
                yield name, "is set, and gitops_secret_name names a Secret that is to have it", "take one of them out"
        return
    if url.startswith("http://") and values["gitops_password"]:
        yield "gitops_repository", "is http, which sends the password in plain text", "write https"
    if by_ssh and provider == "flux" and not values[ssh[0]]:
        fix = "name the file of a deploy key, or a Secret in gitops_secret_name"
        yield ssh[0], "is empty, and gitops_repository is an SSH address", fix
    trusting = provider == "flux" or values["gitops_install"] == "release"
    if by_ssh and values[ssh[0]] and not values[trust[1]] and trusting:
        fix = "write what ssh-keyscan says to a file, compare it with what the host publishes, and name the file"
        yield trust[1], "is empty, and nothing says which SSH keys the Git host has", fix


def existing_argocd(values: Values) -> Findings:
    """An Argo CD of somebody else trusts whom they trust."""
    if values["gitops_provider"] != "argocd" or values["gitops_install"] != "existing":
        return
    places = {"gitops_ca_file": "argocd-tls-certs-cm", "gitops_known_hosts_file": "argocd-ssh-known-hosts-cm"}
    for name, place in places.items():
        if values[name]:
            problem = "is set, and gitops_install existing leaves Argo CD's settings alone"
            yield name, problem, f"take it out, and see to it in the ConfigMap {place} of that installation"


def namespaces(values: Values) -> Findings:
    """Our namespaces deny all other traffic and have Pod Security labels: nothing else can live in them.

    That of low_latency is removed when it is switched off.
    """
    taken = {"default": "Kubernetes", "kube-system": "Kubernetes", "kube-public": "Kubernetes"}
    taken |= {values["keda_namespace"]: "keda_namespace", values["ingress_namespace"]: "ingress_namespace"}
    taken |= {values["gitops_namespace"]: "gitops_namespace"}
    ours = ("nativelink_namespace", "nativelink_workers_namespace")
    choose = "choose a namespace that is used for nothing else"
    for name in ours:
        if owner := taken.get(values[name]):
            yield name, f"{values[name]} belongs to {owner}", choose
    if values[ours[0]] == values[ours[1]]:
        fix = "choose two: workers run other people's commands"
        yield ours[1], f"is {values[ours[1]]}, the same as nativelink_namespace", fix
    taken |= {values[name]: name for name in ours}
    if owner := taken.get(values["low_latency_namespace"]):
        yield "low_latency_namespace", f"{values['low_latency_namespace']} belongs to {owner}", choose


def cas_storage_class(values: Values) -> Findings:
    """The class of the CAS volumes is named, never a cluster's default."""
    if not values["nativelink_cas_storage_class"] and not values["storage_classes_list"]:
        yield (
            "nativelink_cas_storage_class",
            "is empty, and storage_classes_list has no class to take instead",
            "name a StorageClass of the cluster, or list one that shall be made",
        )


def storage_classes(values: Values) -> Findings:
    """A class is listed once, and one of them may be the default."""
    names = [item["name"] for item in values["storage_classes_list"]]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"storage_classes_list[{name}].name", f"{names.count(name)} classes have this name", "rename the others"
    default = [item["name"] for item in values["storage_classes_list"] if item.get("default")]
    if len(default) > 1:
        yield "storage_classes_list", f"{' and '.join(default)} are both the default class", "choose one"


def images_without_tag(values: Values) -> Findings:
    """The tag of these comes from a variable of its own."""
    sources = {
        "nativelink_image": "nativelink_version",
        "nativelink_worker_init_image": "nativelink_version",
        "nativelink_redis_image": "nativelink_redis_version",
        "nativelink_collector_image": "nativelink_collector_version",
        "nativelink_redis_exporter_image": "nativelink_redis_exporter_version",
        "nativelink_prometheus_image": "nativelink_prometheus_version",
        "low_latency_image": "low_latency_image_version",
        "ingress_envoy_image": "ingress_envoy_gateway_version",
    }
    for name, version in sources.items():
        found = IMAGE.fullmatch(values[name]) if name in values else None
        if found and (extra := found["digest"] or found["tag"]):
            digest = f"{name}_digest"
            other = digest if found["digest"] and digest in values else version
            yield name, f"ends in {extra}", f"take that out, and set {other}"


RULES: tuple[Callable[[Any], Findings], ...] = (
    duplicate_pools,
    min_over_max,
    resources,
    scheduler_backend,
    redis,
    redis_memory,
    stores_fit_volume,
    scratch_fits_store,
    declared_properties,
    offered_properties,
    edge,
    scaling,
    prometheus,
    gitops,
    gitops_credentials,
    existing_argocd,
    namespaces,
    cas_storage_class,
    storage_classes,
    images_without_tag,
)

"""Rules for combinations of variables of one cluster. Each is a function that yields (variable, problem, remedy)."""

import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from .. import providers, specs, versions
from ..derived import COPIES, derived_properties, isolation_of, redis_may_fill, scaling_of
from ..findings import Findings
from ..layout import MOST_GROWN
from ..quantities import QuantityError, bytes_of, cpu_of, part_of, size_text
from ..specs import Values
from .formats import IMAGE, SCP, nearest, one_of, shown, too_small
from .types import CheckedValues, item_path


def pools_of(values: Values) -> Iterator[tuple[str, Values]]:
    """The path of each pool, and the pool with its defaults."""
    filled = specs.with_defaults({"nativelink_worker_pools": values["nativelink_worker_pools"]})
    for index, pool in enumerate(filled["nativelink_worker_pools"]):
        yield item_path("nativelink_worker_pools", index, pool), pool


def duplicate_pools(values: Values) -> Findings:
    """Pools with the same name would be one Deployment."""
    names = [pool["name"] for _unused, pool in pools_of(values)]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"nativelink_worker_pools[{name}].name", f"{names.count(name)} pools have this name", "rename the others"


def persistent_workers(values: Values) -> Findings:
    """A persistent worker serves several actions, so it cannot have the user of one."""
    for path, pool in pools_of(values):
        if pool["persistent_workers"] and isolation_of(pool, values) == "users":
            yield (
                f"{path}.persistent_workers",
                "is true, but a process that serves several actions cannot have the user of one (isolation: users)",
                "set the pool's isolation to none, or remove persistent_workers",
            )


def min_over_max(values: Values) -> Findings:
    """The minimum is not more than the maximum, which a pool that does not scale ignores."""
    for path, pool in pools_of(values):
        if scaling_of(pool, values) != "none" and pool["min_replicas"] > pool["max_replicas"]:
            problem = f"is {pool['min_replicas']}, which is more than max_replicas ({pool['max_replicas']})"
            yield f"{path}.min_replicas", problem, "lower it, or raise max_replicas"


def schedules(values: Values) -> Findings:
    """A time of a schedule changes the number of workers, and ends. Only KEDA has a clock."""
    for path, pool in pools_of(values):
        least, most = pool["min_replicas"], pool["max_replicas"]
        if pool["schedule"] and scaling_of(pool, values) != "keda":
            problem = "is set, but the pool does not scale with keda"
            yield f"{path}.schedule", problem, "remove it, or set scaling to keda"
        for index, time in enumerate(pool["schedule"]):
            if time["start"] == time["end"]:
                yield f"{path}.schedule[{index}].end", "is the same as start", "write when the time ends"
            if not least < time["replicas"] <= most:
                problem = f"is {time['replicas']}, but the pool has more than {least} and at most {most} by a schedule"
                remedy = "write a number between, or change min_replicas or max_replicas"
                yield f"{path}.schedule[{index}].replicas", problem, remedy


def resources(values: Values) -> Findings:
    """Resources exist, their quantities are valid, and requests are not more than limits."""
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
                problem = f"is {value['requests'][name]}, which is more than the limit ({value['limits'][name]})"
                yield f"{path}.requests.{name}", problem, "lower it, or raise the limit"


_RESOURCES = ("cpu", "memory", "ephemeral-storage")


def overcommitted(name: str) -> bool:
    """Return whether a resource's limit may exceed its request. That of a device or of huge pages may not."""
    return "/" not in name and not name.startswith("hugepages-")


def _amounts(amounts: Values) -> Iterator[tuple[str, int | tuple[str, str]]]:
    for name, amount in amounts.items():
        if not overcommitted(name):
            continue  # kubernetes.extended_resources
        if name not in _RESOURCES:
            near = nearest(name, _RESOURCES, 0.5)
            yield name, ("is not a resource of a container", one_of(near, _RESOURCES))
            continue
        try:
            parsed = cpu_of(amount) if name == "cpu" else bytes_of(amount)
            problem = too_small(parsed, amount) if name != "cpu" and parsed else ""
        except QuantityError as error:
            parsed, problem = 0, str(error)
        remedy = "write an amount such as 4 or 500m" if name == "cpu" else "write a size with its unit, such as 8Gi"
        yield name, (problem, remedy) if problem else parsed


def nativelink_version(values: Values) -> Findings:
    """The configuration of the version is known, and the version does not corrupt what it stores."""
    version = values["nativelink_version"]
    try:
        versions.row(version)
    except versions.UnknownVersionError:
        faults = versions.faults(version, refused=True)
        problem = f"which {' and '.join(faults)}" if faults else "whose configuration is not known"
        remedy = f"write {', '.join(sorted(versions.VERSIONS))}, or a version after {versions.NEWEST}"
        yield "nativelink_version", f"is {version}, {problem}", remedy


def scheduler_backend(values: Values) -> Findings:
    """Schedulers in memory have separate queues. Older versions lose actions on Redis."""
    count = values["nativelink_scheduler_replicas"]
    if values["nativelink_scheduler_backend"] != "redis":
        if count > 1:
            problem = f"is {count}, but each scheduler in memory has its own queue"
            yield "nativelink_scheduler_replicas", problem, "write 1, or set nativelink_scheduler_backend to redis"
    elif not versions.row(values["nativelink_version"]).redis_backend:
        problem = f"is redis, which NativeLink {values['nativelink_version']} does not support"
        yield "nativelink_scheduler_backend", problem, "write memory, or a newer nativelink_version"


def object_store(values: Values) -> Findings:
    """The bucket can be found, and the pods can prove who they are."""
    if values["nativelink_cas_store"] != "object_store":
        if values["nativelink_cas_max_replicas"]:
            problem = "is set, but with volumes another number of CAS pods moves keys"
            remedy = "write 0, or set nativelink_cas_store to object_store"
            yield "nativelink_cas_max_replicas", problem, remedy
        return
    version, prefix = values["nativelink_version"], "nativelink_object_store_"
    given = {name: values[f"{prefix}{name}"] for name in (*STORE_NEEDS, "identity", "principal", "secret_name")}
    provider, identity = values[f"{prefix}provider"], given["identity"]
    stores = versions.row(version).object_stores
    if provider not in stores:
        problem = f"is {provider}, which needs a newer NativeLink than {version}"
        yield f"{prefix}provider", problem, one_of(None, stores)
    elif identity not in stores[provider]:
        problem = f"is {identity}, which NativeLink {version} does not have for {provider}"
        yield f"{prefix}identity", problem, one_of(None, stores[provider])
    elif identity == "secret" and not given["secret_name"]:
        yield f"{prefix}secret_name", "is empty, but nativelink_object_store_identity is secret", "write its name"
    elif identity in ("irsa", "azure") and not given["principal"]:
        what = "the ARN of the role" if identity == "irsa" else "the client ID"
        yield f"{prefix}principal", f"is empty, but nativelink_object_store_identity is {identity}", f"write {what}"
    elif identity in ("secret", "eks_pod_identity") and given["principal"]:
        yield f"{prefix}principal", f"is set, but nativelink_object_store_identity is {identity}", "remove it"
    if values[f"{prefix}endpoint"] and provider == "gcs":
        yield f"{prefix}endpoint", "is set, but gcs has none", "remove it"
    for name, (users, what) in STORE_NEEDS.items():
        if provider in users and not given[name]:
            yield f"{prefix}{name}", f"is empty, but nativelink_object_store_provider is {provider}", f"write {what}"
        elif provider not in users and given[name]:
            yield f"{prefix}{name}", f"is set, but {provider} has none", "remove it"
    endpoint = urlsplit(values[f"{prefix}endpoint"])
    port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
    allowed = [rule.get("ports") for rule in values[f"{prefix}egress"]]
    if all(ports and port not in [each.get("port") for each in ports] for ports in allowed):
        remedy = f"add one with ports: [{{protocol: TCP, port: {port}}}]"
        yield f"{prefix}egress", f"no rule has port {port} of the object store", remedy
    if not values[f"{prefix}ca_config_map"] and (provider, identity) != ("azure", "secret"):
        problem = "is empty, but the image of NativeLink has no certificate authorities, and does not start without any"
        yield f"{prefix}ca_config_map", problem, "write the name of a ConfigMap"
    most, least = values["nativelink_cas_max_replicas"], values["nativelink_cas_replicas"]
    if 0 < most < least:
        problem = f"is {most}, which is less than nativelink_cas_replicas ({least})"
        yield "nativelink_cas_max_replicas", problem, "raise it, or write 0 for no autoscaler"


STORE_NEEDS = {
    "bucket": (("s3", "gcs", "azure"), "the name of the bucket"),
    "region": (("s3",), "its region, such as eu-central-1"),
    "account": (("azure",), "the storage account"),
}
"""What identifies a bucket: the providers that need it, and a remedy."""


def chunking(values: Values) -> Findings:
    """Older versions have no chunking."""
    version = values["nativelink_version"]
    if values["nativelink_cas_chunking"] and not versions.row(version).compression:
        problem = f"is true, which NativeLink {version} does not support"
        yield "nativelink_cas_chunking", problem, "remove it, or write a newer nativelink_version"


def redis(values: Values) -> Findings:
    """An existing Redis has an address, and the bundled one has none."""
    if values["nativelink_scheduler_backend"] != "redis":
        return
    address, bundled = values["nativelink_redis_address"], values["nativelink_redis_provider"] == "bundled"
    if bundled and address:
        problem = "is set, but the bundled Redis is used"
        yield "nativelink_redis_address", problem, "remove it, or set nativelink_redis_provider to existing"
    if not bundled and not address:
        problem = "is empty, but nativelink_redis_provider is existing"
        yield "nativelink_redis_address", problem, "write its host:port, or set nativelink_redis_provider to bundled"
    if bundled and not values["nativelink_redis_secret_name"]:
        problem = "is empty, but the bundled Redis has a password"
        yield "nativelink_redis_secret_name", problem, "write the name of a Secret"


def redis_memory(values: Values) -> Findings:
    """The memory that the bundled Redis may fill is requested: a pod that exceeds its request is evicted first."""
    if values["nativelink_scheduler_backend"] != "redis" or values["nativelink_redis_provider"] != "bundled":
        return
    resources = values["nativelink_redis_resources"]
    limit, request = (resources.get(kind, {}).get("memory") for kind in ("limits", "requests"))
    if limit and request and bytes_of(request) < redis_may_fill(limit):
        least = (redis_may_fill(limit) + 2**20 - 1) // 2**20
        problem = f"is {request}, which is less than the {least}Mi that Redis may fill (70% of its limit of {limit})"
        yield "nativelink_redis_resources.requests.memory", problem, f"write {least}Mi or more, or lower the limit"


def scratch_within_limit(values: Values) -> Findings:
    """Scratch on the node's disk counts towards the limit of a worker, and Kubernetes evicts a pod above its limit."""
    disk = "ephemeral-storage"
    for path, pool in pools_of(values):
        limit = (pool["resources"].get("limits") or {}).get(disk)
        if limit is not None and not pool["scratch_storage_class"] and bytes_of(limit) < bytes_of(pool["scratch_size"]):
            problem = (
                f"is {limit}, which is less than scratch_size ({pool['scratch_size']}), so a worker is evicted "
                "before its scratch is full"
            )
            yield f"{path}.resources.limits.{disk}", problem, "raise it, or lower scratch_size"


STORE_PERCENT = 90
"""The share of a CAS volume for both stores. The file system and uploads during evictions need the rest."""


def stores_fit_volume(values: Values) -> Findings:
    """CAS and AC share each CAS pod's volume, unless a bucket has the AC."""
    volume = bytes_of(values["nativelink_cas_volume_size"])
    cas = part_of(values["nativelink_cas_store_size"], volume)
    shared = values["nativelink_cas_store"] == "object_store"
    ac = 0 if shared else part_of(values["nativelink_cas_ac_store_size"], volume)
    room = volume * STORE_PERCENT // 100
    if cas + ac > room:
        problem = (
            f"is {size_text(cas)}, which together with {size_text(ac)} of nativelink_cas_ac_store_size is more than "
            f"{size_text(room)} ({STORE_PERCENT}% of the volume of {size_text(volume)})"
        )
        yield "nativelink_cas_store_size", problem, "lower one of them, or raise nativelink_cas_volume_size"


SCRATCH_PERCENT = 10
SCRATCH_LEAST = 1024**3
"""The least space for running actions: a percentage of the scratch disk, and never below 1Gi."""


def scratch_fits_store(values: Values) -> Findings:
    """The fast store and the directories of actions share the scratch disk."""
    for path, pool in pools_of(values):
        scratch = bytes_of(pool["scratch_size"])
        store = part_of(pool["fast_store_size"], scratch)
        room = max(scratch * SCRATCH_PERCENT // 100, SCRATCH_LEAST)
        if COPIES * store + room > scratch:
            problem = (
                f"is {size_text(scratch)}, but needs {size_text(COPIES * store)} for the fast store (twice its "
                f"{size_text(store)}, because executable inputs are stored twice) and {size_text(room)} for running "
                "actions"
            )
            yield f"{path}.scratch_size", problem, "raise it, or lower fast_store_size"


def declared_properties(values: Values) -> Findings:
    """The scheduler refuses undeclared properties, and compares properties of the kind `minimum` as numbers."""
    declared = values["nativelink_scheduler_platform_properties"]
    kinds = ("exact", "minimum", "priority", "ignore")
    for name, kind in declared.items():
        if kind not in kinds:
            path = f"nativelink_scheduler_platform_properties.{name}"
            yield path, f"is {shown(kind)}, which is not a valid choice", one_of(nearest(str(kind), kinds, 0.6), kinds)
    for path, pool in pools_of(values):
        for name, value in pool["platform_properties"].items():
            items = value if isinstance(value, list) else [value]
            where = f"{path}.platform_properties.{name}"
            if name not in declared:
                near = nearest(name, tuple(declared), 0.7)
                remedy = "declare it in nativelink_scheduler_platform_properties"
                remedy = f"write {near}, or {remedy}" if near else remedy
                yield where, "the scheduler does not declare this property", remedy
            elif declared[name] == "minimum" and not all(re.fullmatch("[0-9]+", str(item)) for item in items):
                yield where, f"is {shown(value)}, but the scheduler compares it as a number", "write a whole number"
            elif not items or any(item is None or isinstance(item, dict | list) for item in items):
                problem = f"is {shown(value)}, which is not a valid property"
                yield where, problem, "write a text, a number or a list of them"


def offered_properties(values: CheckedValues) -> Findings:
    """With v1.6.6 an action never runs if no worker offers its `minimum` or `priority` property."""
    declared = values["nativelink_scheduler_platform_properties"]
    values.whole("nativelink_worker_pools")  # an invalid pool may offer the property
    offered: set[str] = set()
    for _unused, pool in pools_of(values):
        offered |= {*pool["platform_properties"], *derived_properties(pool, declared)}
    for name, kind in declared.items():
        if kind in ("minimum", "priority") and name not in offered:
            yield (
                f"nativelink_scheduler_platform_properties.{name}",
                f"is {kind}, but no pool offers it: an action that asks for it would never run, without an error",
                "add it to the platform_properties of a pool, or write ignore",
            )


def edge(values: Values) -> Findings:
    """The routes need a controller that serves them, and NetworkPolicies that admit it."""
    wanted, provider = values["nativelink_edge"], values["ingress_provider"]
    controller = providers.controllers()[provider]
    if wanted != "none" and wanted not in controller.serves:
        serving = " or ".join(name for name, each in providers.controllers().items() if wanted in each.serves)
        problem = f"is {wanted}, which the ingress_provider {provider} does not serve"
        yield "nativelink_edge", problem, f"set ingress_provider to {serving}, or nativelink_edge to something else"
    elif wanted != "none" and not values["ingress_namespace"] and not values["nativelink_client_peers"]:
        remedy = "write the namespace of the controller's proxies, or set nativelink_client_peers"
        yield "ingress_namespace", "is empty, so no client could connect", remedy
    if values["nativelink_edge_client_ca_secret"]:
        if wanted != "gateway" or not controller.client_certificates:
            asking = " or ".join(name for name, each in providers.controllers().items() if each.client_certificates)
            problem = f"is set, but only a Gateway of the ingress_provider {asking} asks clients for certificates"
            remedy = "remove it, and configure your controller to ask for certificates"
            yield "nativelink_edge_client_ca_secret", problem, remedy
        elif not values["nativelink_edge_tls_secret"]:
            problem = "is set, but clients present certificates only over TLS"
            remedy = "set nativelink_edge_tls_secret to the name of a TLS Secret"
            yield "nativelink_edge_client_ca_secret", problem, remedy


def open_edge(values: Values) -> Findings:
    """NativeLink itself lets every client in, so the edge identifies clients, or the user says why it does not."""
    if values["nativelink_edge"] == "none":
        return
    reason = values["nativelink_edge_open"].strip()
    if values["nativelink_edge_tls_secret"]:
        name, missing = "nativelink_edge_client_ca_secret", "and nativelink_edge_access too"
        closed = values[name] or values["nativelink_edge_access"]
        remedy = "write the name of a Secret with the CA of your clients' certificates"
    else:
        name, missing, closed = "nativelink_edge_tls_secret", "so calls are not encrypted", False
        remedy = "write the name of a TLS Secret"
    if not closed and not reason:
        problem = f"is empty, {missing}, so everyone who reaches the edge could use the cache and run commands"
        yield name, problem, f"{remedy}, or say in nativelink_edge_open why this edge may be open"
    elif closed and reason:
        yield "nativelink_edge_open", "is set, but the edge is not open", "remove it"


def edge_access(values: Values) -> Findings:
    """Each entry has one identity, which the edge can tell from others."""
    entries = specs.with_defaults({"nativelink_edge_access": values["nativelink_edge_access"]})
    issuers = [issuer["name"] for issuer in values["nativelink_edge_token_issuers"]]
    for name in sorted({name for name in issuers if issuers.count(name) > 1}):
        problem = f"{issuers.count(name)} issuers have this name"
        yield f"nativelink_edge_token_issuers[{name}].name", problem, "rename the others"
    if not entries["nativelink_edge_access"]:
        return
    if not providers.behind_envoy_gateway(values):
        problem = "is set, but only a Gateway of the ingress_provider envoy-gateway tells who calls"
        yield "nativelink_edge_access", problem, "remove it, and let your controller decide (docs/edge.md)"
    elif not values["nativelink_edge_tls_secret"]:
        problem = "is set, but without TLS everyone on the network path could read and use an identity"
        yield "nativelink_edge_access", problem, "set nativelink_edge_tls_secret to the name of a TLS Secret"
    for index, entry in enumerate(entries["nativelink_edge_access"]):
        path = f"nativelink_edge_access[{index}]"
        stated = [key for key in ("certificate", "issuer", "keys") if entry[key]]
        if len(stated) != 1:
            problem = f"has {' and '.join(stated) or 'no identity'}, but an entry has one identity"
            yield path, problem, "write one of certificate, issuer and keys, and an entry for each further identity"
        if entry["certificate"] and not values["nativelink_edge_client_ca_secret"]:
            problem = "is set, but nativelink_edge_client_ca_secret is empty, so no certificate is asked for"
            yield f"{path}.certificate", problem, "write the name of a Secret with the CA of your clients' certificates"
        if entry["issuer"] and entry["issuer"] not in issuers:
            problem = f"is {entry['issuer']}, which is not in nativelink_edge_token_issuers"
            near = nearest(entry["issuer"], tuple(issuers), 0.6)
            yield f"{path}.issuer", problem, one_of(near, issuers) if issuers else "add it there"
        if entry["issuer"] and not entry["claims"]:
            problem = "is empty, so every token of the issuer would do, also one that it gave to a stranger"
            yield f"{path}.claims", problem, "write a claim that only your clients have, such as repository"
        if entry["claims"] and not entry["issuer"]:
            yield f"{path}.claims", "is set, but issuer is empty", "write the name of an issuer, or remove the claims"
        for claim, value in entry["claims"].items():
            texts = value if isinstance(value, list) else [value]
            if not texts or not all(isinstance(text, str) and text for text in texts):
                problem = f"is {shown(value)}, which is neither a text nor a list of texts"
                yield f"{path}.claims.{claim}", problem, "write the claim's value in quotes"


def mutual_tls(values: Values) -> Findings:
    """The end of the certificates is known, and nothing is said about certificates that do not exist."""
    secret = values["nativelink_mutual_tls_secret"]
    if secret and not values["nativelink_mutual_tls_expires"]:
        problem = "is empty, but nativelink_mutual_tls_secret is set"
        yield "nativelink_mutual_tls_expires", problem, "write the day on which its certificates end"
    for name in ("nativelink_mutual_tls_expires", "nativelink_mutual_tls_issuer"):
        if values[name] and not secret:
            problem = "is set, but nativelink_mutual_tls_secret is empty"
            yield name, problem, "remove it, or write the name of the Secrets"


def scaling(values: Values) -> Findings:
    """KEDA is installed where a pool uses it, and an HPA has metrics and at least one replica."""
    without_keda = values["keda_install"] == "none"
    if without_keda and values["nativelink_scaling"] == "keda":
        remedy = "set keda_install to release or existing, or nativelink_scaling to hpa or none"
        yield "nativelink_scaling", "is keda, but keda_install is none", remedy
    for path, pool in pools_of(values):
        if without_keda and pool["scaling"] == "keda":
            remedy = "set keda_install to release or existing, or scaling to hpa or none"
            yield f"{path}.scaling", "is keda, but keda_install is none", remedy
        if scaling_of(pool, values) == "hpa" and pool["min_replicas"] == 0:
            yield f"{path}.min_replicas", "is 0, but an HPA cannot scale to zero", "write 1 or more, or scale with keda"
    hpa = [pool["name"] for _unused, pool in pools_of(values) if scaling_of(pool, values) == "hpa"]
    if hpa and not values["nativelink_metrics_namespaces"]:
        problem = f"is empty, so the HPA of {', '.join(hpa)} could not read its metrics"
        yield "nativelink_metrics_namespaces", problem, "write the namespace of your Prometheus or metrics adapter"


def metrics(values: Values) -> Findings:
    """A scheduler in memory tells its demand by metrics only. Traces go the way of metrics."""
    senders = values["nativelink_metrics"]
    followers = [
        pool["name"]
        for _unused, pool in pools_of(values)
        if scaling_of(pool, values) == "hpa" or (scaling_of(pool, values) == "keda" and not pool["query"])
    ]
    if "scheduler" not in senders and values["nativelink_scheduler_backend"] == "memory" and followers:
        problem = f"lacks scheduler, so {', '.join(followers)} could not follow the demand of a scheduler in memory"
        remedy = "add scheduler, or set nativelink_scaling to none, or nativelink_scheduler_backend to redis"
        yield "nativelink_metrics", problem, remedy
    if values["nativelink_traces_endpoint"] and not senders:
        problem = "is set, but nativelink_metrics is empty, so no workload sends traces"
        yield "nativelink_traces_endpoint", problem, "remove it, or list the workloads in nativelink_metrics"


def scrapes(values: Values) -> Findings:
    """What is scraped exists, and a Prometheus scrapes it."""
    wanted = values["nativelink_prometheus_scrapes"]
    if wanted and values["nativelink_prometheus"] not in ("bundled", "operator"):
        problem = f"is set, but nativelink_prometheus is {values['nativelink_prometheus']}"
        yield "nativelink_prometheus_scrapes", problem, "remove it, or set nativelink_prometheus to bundled or operator"
    if "edge" in wanted and not providers.behind_envoy_gateway(values):
        yield "nativelink_prometheus_scrapes", "has edge, but no Envoy Gateway is the edge", "remove edge"
    if "gitops" in wanted and values["gitops_provider"] == "none":
        yield "nativelink_prometheus_scrapes", "has gitops, but gitops_provider is none", "remove gitops"


def prometheus(values: Values) -> Findings:
    """Queries need a Prometheus, and NetworkPolicies must admit an existing Prometheus."""
    provider, address = values["nativelink_prometheus"], values["nativelink_prometheus_address"]
    for path, pool in pools_of(values):
        if not pool["query"]:
            continue
        if scaling_of(pool, values) != "keda":
            yield f"{path}.query", "is set, but the pool does not scale with keda", "remove it, or set scaling to keda"
        elif not address and provider != "bundled":
            remedy = "set nativelink_prometheus_address, or set nativelink_prometheus to bundled"
            yield f"{path}.query", "is set, but no Prometheus is configured", remedy
    if address and provider == "bundled":
        remedy = "remove it, or set nativelink_prometheus to another value"
        yield "nativelink_prometheus_address", "is set, but the bundled Prometheus is used", remedy
    if provider in ("operator", "annotations") and not values["nativelink_metrics_namespaces"]:
        problem = f"is empty, but nativelink_prometheus is {provider}: NetworkPolicies would block your Prometheus"
        yield "nativelink_metrics_namespaces", problem, "write its namespace"


LONGEST_CLUSTER = 63 - len("nativelink-")
"""Characters of a cluster's name: engines label objects with the name of their own object, nativelink-<cluster>."""


def gitops(values: Values) -> Findings:
    """An engine has a repository, a path in it, and the namespace of its manifest."""
    provider = values["gitops_provider"]
    if provider == "none":
        return
    engine = providers.engines()[provider]
    if not values["gitops_repository"]:
        problem = f"is empty, but gitops_provider is {provider}"
        yield "gitops_repository", problem, "write the repository's URL, or set gitops_provider to none"
    if not engine.takes_scp_addresses and (found := SCP.fullmatch(values["gitops_repository"])):
        problem = f"is {found[0]}, a form that {engine.title} does not support"
        yield "gitops_repository", problem, f"write ssh://{found['host']}/{found['path']}"
    if not values["gitops_path"]:
        yield "gitops_path", "is empty", "write the folder of the tree, or . for the root of the repository"
    cluster = values["cluster"]
    if len(cluster) > LONGEST_CLUSTER:
        problem = f"has {len(cluster)} characters, which is too long for the label nativelink-{cluster}"
        yield "cluster", problem, f"use at most {LONGEST_CLUSTER}"
    if values["gitops_install"] == "release" and values["gitops_namespace"] != engine.namespace:
        problem = f"is {values['gitops_namespace']}, but the release manifest of {provider} uses {engine.namespace}"
        yield "gitops_namespace", problem, "remove it, or set gitops_install to existing"
    if values["gitops_sops_secret"] and not engine.decrypts:
        problem = f"is set, but {engine.title} does not decrypt Secrets"
        yield "gitops_sops_secret", problem, "remove it, and use External Secrets or Sealed Secrets (docs/secrets.md)"


def gitops_credentials(values: Values) -> Findings:
    """Credentials match the repository's URL and the engine, and are set in one place."""
    provider, url = values["gitops_provider"], values["gitops_repository"]
    if provider == "none" or not url:
        return
    engine = providers.engines()[provider]
    is_ssh = bool(SCP.fullmatch(url)) or url.startswith("ssh://")
    https, ssh_key = ("gitops_username", "gitops_password"), "gitops_ssh_private_key_file"
    ca, known_hosts = "gitops_ca_file", "gitops_known_hosts_file"
    unusable = (*https, ca) if is_ssh else (ssh_key, known_hosts)
    for name in unusable:
        if values[name]:
            problem = f"is set, but gitops_repository is {'an SSH' if is_ssh else 'not an SSH'} address"
            yield name, problem, f"remove it, or write the {'HTTPS' if is_ssh else 'SSH'} address"
    if values["gitops_secret_name"]:
        for name in (*engine.secret["values"].values(), *engine.secret["files"].values()):
            if values[name] and name not in unusable:
                yield name, "is set, but the Secret of gitops_secret_name holds it", "remove one of the two"
        return
    if url.startswith("http://") and values["gitops_password"]:
        yield "gitops_repository", "uses http, which sends the password in plain text", "use https"
    if is_ssh and engine.needs_ssh_key and not values[ssh_key]:
        remedy = "write the path of a deploy key, or set gitops_secret_name to the name of a Secret"
        yield ssh_key, "is empty, but gitops_repository is an SSH address", remedy
    trusts_hosts = not engine.settings or values["gitops_install"] == "release"
    if is_ssh and values[ssh_key] and not values[known_hosts] and trusts_hosts:
        remedy = "save the output of ssh-keyscan, compare it with the keys of the Git host, and write its path"
        yield known_hosts, "is empty, so the SSH keys of the Git host are unknown", remedy


def existing_engine(values: Values) -> Findings:
    """The settings of an existing engine are not changed."""
    if values["gitops_provider"] == "none" or values["gitops_install"] != "existing":
        return
    engine = providers.engines()[values["gitops_provider"]]
    for name, place in engine.settings.items():
        if values[name]:
            problem = f"is set, but with gitops_install existing the settings of {engine.title} do not change"
            yield name, problem, f"remove it, and edit the ConfigMap {place} of that installation"


def namespaces(values: Values) -> Findings:
    """Nothing else uses NativeLink's namespaces, which deny all other traffic and have Pod Security labels.

    The node_agent role deletes its namespace when it is switched off.
    """
    taken = {"default": "Kubernetes", "kube-system": "Kubernetes", "kube-public": "Kubernetes"}
    taken |= {values["keda_namespace"]: "keda_namespace", values["ingress_namespace"]: "ingress_namespace"}
    taken |= {values["gitops_namespace"]: "gitops_namespace"}
    own, workers = "nativelink_namespace", "nativelink_workers_namespace"
    remedy = "choose a namespace that nothing else uses"
    for name in (own, workers):
        if owner := taken.get(values[name]):
            yield name, f"is {values[name]}, which {owner} uses", remedy
    if values[own] == values[workers]:
        problem = f"is {values[workers]}, which is also nativelink_namespace"
        yield workers, problem, "choose another one, because workers run the commands of clients"
    taken |= {values[name]: name for name in (own, workers)}
    if owner := taken.get(values["node_agent_namespace"]):
        yield "node_agent_namespace", f"is {values['node_agent_namespace']}, which {owner} uses", remedy


def worker_certificates(values: Values) -> Findings:
    """The Secrets that are made have a name, another one than their CA, and one maker."""
    if not values["worker_certificates_create"]:
        return
    secret = values["nativelink_mutual_tls_secret"]
    if not secret:
        remedy = "write the name of the Secrets there, or set worker_certificates_create to false"
        yield "worker_certificates_create", "is true, but nativelink_mutual_tls_secret is empty", remedy
    elif secret in (values["worker_certificates_ca"], *values["worker_certificates_trusted"]):
        yield "nativelink_mutual_tls_secret", f"is {secret}, which is also the Secret of a CA", "rename one of the two"
    if values["nativelink_mutual_tls_issuer"]:
        problem = "is true, but cert-manager makes the Secrets (nativelink_mutual_tls_issuer)"
        yield "worker_certificates_create", problem, "set it to false, or remove nativelink_mutual_tls_issuer"


def cas_storage_class(values: Values) -> Findings:
    """The StorageClass of the CAS volumes is set, and is never a cluster's default."""
    if not values["nativelink_cas_storage_class"] and not values["storage_classes_list"]:
        remedy = "write the name of a StorageClass, or add one to storage_classes_list"
        yield "nativelink_cas_storage_class", "is empty, but storage_classes_list has no class to use instead", remedy


def cas_layout(values: Values) -> Findings:
    """The pods that have content exist, and their list of shards fits into a ConfigMap."""
    pods, shards = values["nativelink_cas_replicas"], ("nativelink_cas_shards", "nativelink_cas_shards_next")
    if values["nativelink_cas_store"] != "volumes":
        for name in ("nativelink_cas_layout_from", *shards):
            if values[name]:
                yield name, "is set, but pods in front of a bucket have no shards", "write 0"
        return
    for name in shards:
        if values[name] > pods:
            yield name, f"is {values[name]}, which is more than nativelink_cas_replicas ({pods})", "lower it"
    if 0 < (began := values["nativelink_cas_layout_from"]) < pods > MOST_GROWN:
        problem = f"is {began}, but the list of shards fits into a ConfigMap only for up to {MOST_GROWN} pods"
        yield "nativelink_cas_layout_from", problem, "lower nativelink_cas_replicas, or write 0, which moves content"


def storage_classes(values: Values) -> Findings:
    """A class is listed once, and at most one is the default."""
    names = [item["name"] for item in values["storage_classes_list"]]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"storage_classes_list[{name}].name", f"{names.count(name)} classes have this name", "rename the others"
    default = [item["name"] for item in values["storage_classes_list"] if item.get("default")]
    if len(default) > 1:
        yield "storage_classes_list", f"{' and '.join(default)} are default classes", "set default for one class only"


IMAGE_VERSIONS = {
    "nativelink_image": "nativelink_version",
    "nativelink_worker_init_image": "nativelink_version",
    "nativelink_redis_image": "nativelink_redis_version",
    "nativelink_headroom_image": "nativelink_headroom_version",
    "nativelink_copier_image": "nativelink_copier_version",
    "nativelink_collector_image": "nativelink_collector_version",
    "nativelink_redis_exporter_image": "nativelink_redis_exporter_version",
    "nativelink_prometheus_image": "nativelink_prometheus_version",
    "node_agent_image": "node_agent_image_version",
    "ingress_envoy_image": "ingress_envoy_gateway_version",
}
"""The variables of images, and those of their tags."""


def images_without_tag(values: Values) -> Findings:
    """The tag and digest of an image are in variables of their own."""
    for name, version in IMAGE_VERSIONS.items():
        found = IMAGE.fullmatch(values[name]) if name in values else None
        if found and (extra := found["digest"] or found["tag"]):
            digest = f"{name}_digest"
            other = digest if found["digest"] and digest in values else version
            yield name, f"ends with {extra}", f"remove that, and set {other}"


def image_versions(values: Values) -> Findings:
    """The tag of a default image begins with v if the default tag does. The tags of other images are not known."""
    for name, version in IMAGE_VERSIONS.items():
        if not values.get(name) or version not in values or values[name] != specs.options()[name].default:
            continue
        tag, has_v = values[version], specs.options()[version].default.startswith("v")
        if re.match("v?[0-9]", tag) and tag.startswith("v") != has_v:
            other = f"v{tag}" if has_v else tag[1:]
            yield version, f"is {tag}, but the tags of {values[name]} have {'a' if has_v else 'no'} v", f"write {other}"


RULES: tuple[Callable[[Any], Findings], ...] = (
    duplicate_pools,
    persistent_workers,
    min_over_max,
    schedules,
    resources,
    nativelink_version,
    scheduler_backend,
    object_store,
    chunking,
    redis,
    redis_memory,
    stores_fit_volume,
    scratch_fits_store,
    scratch_within_limit,
    declared_properties,
    offered_properties,
    edge,
    open_edge,
    edge_access,
    mutual_tls,
    scaling,
    metrics,
    prometheus,
    scrapes,
    gitops,
    gitops_credentials,
    existing_engine,
    namespaces,
    worker_certificates,
    cas_storage_class,
    cas_layout,
    storage_classes,
    images_without_tag,
    image_versions,
)

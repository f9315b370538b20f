"""From a cluster's variables to what its templates need: every derived value is computed here, and only here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import isolation, monitoring
from .filters import as_text
from .ports import PORTS
from .quantities import bytes_of, cpu_of, network_of, part_of, seconds_of
from .specs import with_defaults
from .versions import VERSIONS

COMPONENTS = (
    "cas",
    "scheduler",
    "redis",
    "worker",
    "headroom",
    "prepull",
    "collector",
    "collector-workers",
    "demand",
    "prometheus",
    "certificates",
    "edge",
    "policy",
)

# Seconds around an action that no timeout of NativeLink covers: fetching its inputs, cleaning up, reporting.
ACTION_MARGIN = 300
# ext4 has an inode for each 16 KiB by default, so a store of smaller files runs out of inodes before it is full. A
# twentieth is left for directories, incomplete uploads, and the file system itself.
BYTES_AN_INODE = 16 * 1024
INODE_PERCENT = 95
# NativeLink counts a file in whole blocks of 4 KiB, so no store holds more files than this makes of its bytes.
BYTES_A_BLOCK = 4 * 1024
# Memory that a CAS pod takes for each file of its stores (seen on v1.6.6: 450 to 530 bytes), and the part of its limit
# that all of them may take. The rest is for what comes and goes.
MEMORY_A_FILE = 512
INDEX_PERCENT = 75
# A full store frees this much at once, but at most a hundredth of its size. The write that finds the store full deletes
# all of it before it is answered, at 0.1 to 0.6 ms a file (seen on v1.6.6). A twentieth of 160 GiB would take minutes.
EVICT_BYTES = 8 * 1024**2
# A store of executable inputs keeps a second copy of each, which `max_bytes` does not count (v1.6.6: source).
COPIES = 2
# What a worker may write beside its scratch, of the scratch and at least: its log, /var/tmp, the root file system.
BESIDE_PERCENT = 10
BESIDE_LEAST = 2 * 1024**3
# Kubernetes notices a lost node after 40 to 50 seconds, and then waits 5 minutes unless a pod says otherwise.
LOST_NODE_SECONDS = 10
LOST_NODE_TAINTS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
# Provisioning creates this class. Workers have none, so a full node evicts a worker rather than the queue or the cache.
PRIORITY_CLASS = "nativelink-control-plane"
# The kubelet probes a starting CAS this often; the budget is nativelink_cas_startup_timeout.
STARTUP_PERIOD = 10
# KEDA polls without an answer for this many seconds before it holds a pool, or wakes one from zero. If the connection
# is not even refused, each of the two numbers takes 3 s more (KEDA's HTTP timeout), which is a minute by default.
LOST = 10
# Cluster Autoscaler waits this long for a pod that it evicts, unless --max-graceful-termination-sec says more.
EVICTION_PATIENCE = 600
SAFE_TO_EVICT = "cluster-autoscaler.kubernetes.io/safe-to-evict"
# The part of its memory limit that the bundled Redis may fill. The rest is for connections, and for what changes while
# Redis rewrites its file.
REDIS_FILLS = "70%"
# Where pods have the files of the Secret for mutual TLS.
CERTIFICATE = {"cert_file": "/tls/tls.crt", "key_file": "/tls/tls.key"}
SERVER_TLS = {**CERTIFICATE, "client_ca_file": "/tls/ca.crt"}
CLIENT_TLS = {**CERTIFICATE, "ca_file": "/tls/ca.crt"}
# Labels of spot nodes, and whether the nodes keep other pods away by a taint of the same key and value.
SPOT = {
    "karpenter": ("karpenter.sh/capacity-type", "spot", False),
    "eks": ("eks.amazonaws.com/capacityType", "SPOT", False),
    "gke": ("cloud.google.com/gke-spot", "true", True),
    "aks": ("kubernetes.azure.com/scalesetpriority", "spot", True),
}
# The collector records the same for a scheduler in memory.
DEMAND_BY_POOL = (
    'sum by (cluster, namespace, pool) (label_replace(redis_script_values, "pool", "$1", "key", "(.+):[a-z]+"))'
)
# The pool grows to the needed number in one step. The default behaviour doubles, which took 58 s from 4 to 50.
SCALE_UP = {
    "stabilizationWindowSeconds": 0,
    "selectPolicy": "Max",
    "policies": [
        {"type": "Percent", "value": 10000, "periodSeconds": 15},
        {"type": "Pods", "value": 200, "periodSeconds": 15},
    ],
}
# The pool shrinks slowly, because a worker that goes takes its cache with it.
SCALE_DOWN = {
    "stabilizationWindowSeconds": 300,
    "selectPolicy": "Max",
    "policies": [
        {"type": "Percent", "value": 10, "periodSeconds": 60},
        {"type": "Pods", "value": 4, "periodSeconds": 60},
    ],
}
# Neither engine deletes an object because its file, or the engine's own object, is gone (docs/gitops.md).
KEPT = {
    "kustomize.toolkit.fluxcd.io/prune": "disabled",
    "argocd.argoproj.io/sync-options": "Prune=false,Delete=false",
}
# The annotations allow gRPC, uploads of any size, and calls that are silent while their action runs. They are for
# NGINX's own controller (nginx.org) and for the community's.
INGRESS_ANNOTATIONS = {
    "nginx.org/grpc-services": "nativelink-scheduler,nativelink-cas",
    "nginx.org/client-max-body-size": "0",
    "nginx.org/proxy-read-timeout": "86400s",
    "nginx.org/proxy-send-timeout": "86400s",
    "nginx.ingress.kubernetes.io/backend-protocol": "GRPC",
    "nginx.ingress.kubernetes.io/proxy-body-size": "0",
    "nginx.ingress.kubernetes.io/proxy-read-timeout": "86400",
    "nginx.ingress.kubernetes.io/proxy-send-timeout": "86400",
}
# The ConfigMaps of the components: the feature that one needs, and the rendered files that it holds, where the cluster
# has them (`render.FILES`). Those of pools are in the pools.
CONFIG_MAPS = {
    "cas": ("always", ("cas/cas.json5",)),
    "scheduler": ("always", ("scheduler/scheduler.json5", "scheduler/guard.sh", "scheduler/housekeeping.lua")),
    "collector": ("collector", ("monitoring/collector.yaml",)),
    "collector-workers": ("worker_metrics", ("monitoring/collector-workers.yaml",)),
    "demand": ("demand", ("monitoring/demand.lua",)),
    "prometheus": (
        "bundled_prometheus",
        ("monitoring/prometheus.yaml", "monitoring/alert-rules.yaml", "monitoring/rules.yaml"),
    ),
}


def template_context(values: Mapping[str, Any]) -> dict[str, Any]:
    """The context of the templates, from one cluster's effective variables (`specs.effective`), which are valid.

    Sizes ending in `_bytes` are bytes, timeouts and graces are seconds. `features` holds the conditions that
    `render.FILES` names.
    """
    known = with_defaults(values)

    def own(name: str) -> Any:
        return known[f"nativelink_{name}"]

    cluster, backend = known["cluster"], own("scheduler_backend")
    upload = seconds_of(own("worker_upload_timeout"))
    # Always declared: v1.6.6 lets actions of undeclared properties run anywhere, also those that ask for a persistent
    # worker where no pool offers one. The worker itself reads which protocol the action asks for.
    properties = {**own("scheduler_platform_properties"), "supports-workers": "exact"}
    properties.setdefault("requires-worker-protocol", "ignore")
    autoscaled = any(scaling_of(pool, known) != "none" for pool in own("worker_pools"))
    prometheus = own("prometheus")
    shown = autoscaled or prometheus != "none"
    demand = backend == "redis" and shown
    # The workloads that send metrics, if something reads them. On Redis scaling does not.
    read = prometheus != "none" or own("metrics_namespaces") or own("traces_endpoint")
    read = bool(read or (autoscaled and backend == "memory"))
    senders = [name for name in ("scheduler", "cas", "worker") if name in own("metrics") and read]
    collected = backend == "memory" and "scheduler" in senders
    pools = [_pool(pool, cluster, upload, known) for pool in own("worker_pools")]
    bundled = backend == "redis" and own("redis_provider") == "bundled"
    envoy_gateway = behind_envoy_gateway(known)
    several = own("scheduler_replicas") > 1
    behind = {"nativelink-cache": own("cas_replicas"), "nativelink-execution": own("scheduler_replicas")}
    single_pod_routes = [route for route, pods in behind.items() if pods == 1]
    readers = own("metrics_namespaces")
    if any(pool["scaling"] == "keda" for pool in pools):
        readers = [known["keda_namespace"], *readers]
    # A cloud's own controller sends clients in from IP ranges, and lives in no namespace.
    edges = [_namespace(known["ingress_namespace"])] if own("edge") != "none" and known["ingress_namespace"] else []
    if envoy_gateway:
        # Proxies of other Gateways are in the same namespace.
        edges = [{**edge, "podSelector": {"matchLabels": _proxies(own("namespace"))}} for edge in edges]
    memory = own("redis_resources").get("limits", {}).get("memory")
    redis = f"nativelink-redis:{PORTS['redis']}" if bundled else own("redis_address")
    # NativeLink's scheduler keeps the last of several values of a property.
    offers = [
        {
            "name": pool["name"],
            "properties": {key: texts[-1] for key, texts in pool["platform_properties"].items() if texts},
        }
        for pool in pools
    ]
    storage_class = own("cas_storage_class") or next((item["name"] for item in known["storage_classes_list"]), "")
    features = {
        "always": True,
        "several_schedulers": several,
        "redis": backend == "redis",
        "bundled_redis": bundled,
        "collector": "scheduler" in senders or "cas" in senders,
        "collected_demand": collected,
        "cas_metrics": "cas" in senders,
        "scheduler_metrics": "scheduler" in senders,
        "worker_metrics": "worker" in senders,
        "demand": demand,
        "bundled_prometheus": prometheus == "bundled",
        "bundled_prometheus_with_demand": prometheus == "bundled" and demand,
        "prometheus_operator": prometheus == "operator",
        "prometheus_operator_with_demand": prometheus == "operator" and demand,
        "prometheus_operator_with_kubelets": prometheus == "operator" and "cluster" in own("prometheus_scrapes"),
        "plain_alerts": prometheus in ("bundled", "annotations"),
        "scrape_annotations": prometheus == "annotations",
        "dashboards": own("dashboards"),
        "gateway": own("edge") == "gateway",
        "envoy_gateway": envoy_gateway,
        "envoy_gateway_with_a_single_pod": envoy_gateway and bool(single_pod_routes),
        "ingress": own("edge") == "ingress",
        "autoscaled": autoscaled,
        "keda": any(pool["scaling"] == "keda" for pool in pools),
        "isolated_workers": any(pool["isolated"] for pool in pools),
        "client_writers": bool(own("writer_peers")),
        "mutual_tls": bool(own("mutual_tls_secret")),
        "certificates": bool(own("mutual_tls_issuer")),
        **_alerted(known, senders, pools),
    }
    names = monitoring.names(known, pools, features)
    collectors = monitoring.collectors(senders, collected)
    return {
        **known,
        **FIXED,
        "features": features,
        "version": VERSIONS[own("version")],
        "labels": {component: _labels(cluster, component) for component in COMPONENTS},
        "images": {
            "nativelink": _image(own("image"), own("version"), own("image_digest")),
            "worker_init": _image(own("worker_init_image"), own("version"), own("worker_init_image_digest")),
            **{
                name: _image(own(f"{name}_image"), own(f"{name}_version"), own(f"{name}_image_digest"))
                for name in ("redis", "headroom", "collector", "redis_exporter", "prometheus")
            },
        },
        "secrets": _secrets(known),
        "prometheus": {
            "address": own("prometheus_address")
            or f"http://nativelink-prometheus.{own('namespace')}.svc:{PORTS['prometheus']}",
            "labels": {**_labels(cluster, "prometheus"), **own("prometheus_labels")},
            "alerts": monitoring.groups(known, names, features) if prometheus != "none" else [],
            "targets": monitoring.targets(features),
            "scrapes": monitoring.scrapes(own("prometheus_scrapes"), names, features),
            "kubelet_paths": ["/metrics", "/metrics/cadvisor"] if "cluster" in own("prometheus_scrapes") else [],
            "kubelet_series": names["kubelet_series"],
            # It lists pods and nodes by the API.
            "token": bool(own("prometheus_scrapes")),
        },
        "senders": senders,
        "collectors": collectors,
        "collected": [sender for each in collectors if each["component"] == "collector" for sender in each["senders"]],
        # The values of a scheduler that is gone expire soon. KEDA then has no demand, and keeps the workers.
        "demand_expiration": max(5, 3 * own("metrics_interval")),
        "traces": _receiver(own("traces_endpoint"), own("traces_percent")),
        "cas": {
            "storage_class": storage_class,
            **_cas_stores(known),
            # A prefix of the names of the stores that are served.
            "served": "COUNTED_" if "cas" in senders else "",
            "spread": {"required": "DoNotSchedule", "preferred": "ScheduleAnyway"}[own("cas_node_spread")],
            "startup_failures": max(1, own("cas_startup_timeout") // STARTUP_PERIOD),
        },
        "scheduler": {
            "properties": properties,
            # How pools and the kinds of properties tell which pool an action waits for.
            "demand": {"pools": offers, "kinds": properties},
            # It frees what a crashed scheduler left in Redis. A value below an action's time would fail healthy builds.
            "executing_timeout": max(pool["grace"] for pool in pools),
            "tolerations": _back_soon(own("scheduler_tolerations")),
        },
        "redis": {
            "address": redis,
            **_peer(redis, PORTS["redis"]),
            "storage_class": own("redis_storage_class") or storage_class,
            "max_memory": redis_may_fill(memory) if memory else 0,
        },
        # Peers of NetworkPolicies. A rule without peers would admit everything, so templates leave such a rule out.
        "peers": {
            "clients": [*edges, *own("client_peers")],
            "metrics": [_namespace(name) for name in dict.fromkeys(readers)],
        },
        "worker": {"upload_timeout": upload},
        "pools": pools,
        "edge": {
            "single_pod_routes": single_pod_routes,
            "ingress_annotations": {**INGRESS_ANNOTATIONS, **own("edge_annotations")},
        },
        "config_maps": {
            component: {
                "name": f"nativelink-{component}-config",
                "namespace": own("namespace"),
                "files": list(paths),
            }
            for component, (feature, paths) in CONFIG_MAPS.items()
            if features[feature]
        },
    }


def _alerted(known: Mapping[str, Any], senders: list[str], pools: list[dict[str, Any]]) -> dict[str, bool]:
    """The conditions of alerts: what reports, and what of others is in Prometheus.

    An existing Prometheus is taken to scrape all that exists.
    """
    prometheus, named = known["nativelink_prometheus"], known["nativelink_prometheus_scrapes"]
    counts = VERSIONS[known["nativelink_version"]].counts
    redis = known["nativelink_scheduler_backend"] == "redis"
    # The scrape annotations leave out the demand of a scheduler in memory.
    in_memory = not redis and "scheduler" in senders and prometheus in ("bundled", "operator")
    engine = known["gitops_provider"]
    exists = {
        "cluster": True,
        "edge": behind_envoy_gateway(known),
        "keda": any(pool["scaling"] == "keda" for pool in pools),
        "gitops": engine != "none",
    }
    scraped = {name: found and name in named for name, found in exists.items()}
    known_to = {
        name: scraped[name] or (found and prometheus in ("operator", "annotations")) for name, found in exists.items()
    }
    return {
        "scheduler_counts": counts and "scheduler" in senders,
        "cas_counts": counts and "cas" in senders,
        "demand_of_all": in_memory,
        "demand_by_pool": redis and prometheus != "none",
        "edge_tls": bool(known["nativelink_edge_tls_secret"]),
        "argocd": engine == "argocd",
        "flux": engine == "flux",
        **{f"{name}_scraped": found for name, found in scraped.items()},
        **{f"{name}_series": found for name, found in known_to.items()},
    }


def redis_may_fill(limit: str) -> int:
    """Bytes that the bundled Redis may fill of its memory limit, a quantity."""
    return part_of(REDIS_FILLS, bytes_of(limit))


def behind_envoy_gateway(known: Mapping[str, Any]) -> bool:
    """Whether a cluster's edge is a Gateway that Envoy Gateway serves."""
    return bool(known["nativelink_edge"] == "gateway" and known["ingress_provider"] == "envoy-gateway")


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

    A property that is declared `minimum`, `priority` or `exact` and that no worker offers makes every action wait that
    asks for it (seen on v1.6.6).
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


def _secrets(known: Mapping[str, Any]) -> list[dict[str, str]]:
    """The Secrets that the tree names and only the user can make: `namespace`, `name`, and `what` each holds."""
    ours, workers = known["nativelink_namespace"], known["nativelink_workers_namespace"]
    edge = known["nativelink_edge"] != "none"
    redis = known["nativelink_scheduler_backend"] == "redis" and known["nativelink_redis_provider"] == "existing"
    made = known["nativelink_mutual_tls_issuer"] or known["worker_certificates_create"]
    mutual_tls = "" if made else known["nativelink_mutual_tls_secret"]
    wanted = [
        (ours, known["nativelink_edge_tls_secret"] if edge else "", "the certificate of the edge"),
        (ours, known["nativelink_edge_client_ca_secret"] if edge else "", "the CA of the clients"),
        (ours, known["nativelink_redis_secret_name"] if redis else "", "the password of Redis"),
        (ours, mutual_tls, "the certificate of CAS and scheduler for mutual TLS"),
        (workers, mutual_tls, "the certificate of the workers for mutual TLS"),
    ]
    for name in known["nativelink_image_pull_secrets"]:
        wanted += [(namespace, name, "the credentials for pulling images") for namespace in (ours, workers)]
    return [{"namespace": namespace, "name": name, "what": what} for namespace, name, what in wanted if name]


def _pool(pool: Mapping[str, Any], cluster: str, upload: int, known: Mapping[str, Any]) -> dict[str, Any]:
    name, longest = pool["name"], seconds_of(pool["longest_action"])
    scaling = scaling_of(pool, known)
    scratch = bytes_of(pool["scratch_size"])
    stated = {key: _texts(value) for key, value in pool["platform_properties"].items()}
    properties = {**derived_properties(pool, known["nativelink_scheduler_platform_properties"]), **stated}
    slots = pool["slots"] or cpus_of(pool)
    store = part_of(pool["fast_store_size"], scratch)
    image = pool["image"] or known["nativelink_worker_image"]
    # As long as an action that starts just before the drain may take to the report of its result.
    grace = longest + upload + ACTION_MARGIN
    _unused, tolerations = spot(pool["spot"])
    return {
        **pool,
        "config_map": {
            "name": f"nativelink-worker-{name}-config",
            "namespace": known["nativelink_workers_namespace"],
            "files": [
                f"worker/{name}/worker.json5",
                "worker/start.sh",
                "worker/precondition.sh",
                "worker/drain.sh",
            ],
        },
        "image": f"{image}@{pool['image_digest']}" if pool["image_digest"] else image,
        "platform_properties": properties,
        "isolated": isolation_of(pool, known) == "users",
        "resources": _reserved(pool),
        "slots": slots,
        "target": pool["target"] or slots,
        "longest": longest,
        "grace": grace,
        "node_selector": node_selector_of(pool),
        "tolerations": [*tolerations, *pool["tolerations"]],
        # An eviction drains too, as long as the evictor has the patience.
        "annotations": {SAFE_TO_EVICT: as_text(grace <= EVICTION_PATIENCE), **pool["annotations"]},
        "fast_store": _eviction(store, _inodes(scratch) // COPIES),
        # Without a metric KEDA keeps at least this many workers. A fallback of 0 would scale the pool to zero.
        "fallback_replicas": max(1, pool["min_replicas"]),
        "failure_threshold": failing_polls(pool),
        "behavior": {"scaleUp": {**SCALE_UP, **pool["scale_up"]}, "scaleDown": {**SCALE_DOWN, **pool["scale_down"]}},
        "scaling": scaling,
        "features": {
            "always": True,
            "keda": scaling == "keda",
            "hpa": scaling == "hpa",
            "headroom": pool["headroom"] > 0,
            "prepull": pool["prepull"],
        },
    }


def _most(pool: Mapping[str, Any], resource: str) -> Any:
    """A worker's limit of a resource, or else its request; None where it says neither."""
    limits, requests = (pool["resources"].get(kind) or {} for kind in ("limits", "requests"))
    return limits.get(resource, requests.get(resource))


def _inodes(volume: int) -> int:
    """Files that a volume of so many bytes has room for."""
    return volume * INODE_PERCENT // 100 // BYTES_AN_INODE


def _eviction(store: int, files: int) -> dict[str, int]:
    """NativeLink's `eviction_policy` of a store of so many bytes and files."""
    return {"max_bytes": store, "evict_bytes": min(store // 100, EVICT_BYTES), "max_count": files}


def _cas_stores(known: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """The eviction policies of both stores of a CAS pod, which share its volume's inodes and its memory."""
    volume = bytes_of(known["nativelink_cas_volume_size"])
    cas, ac = (part_of(known[f"nativelink_cas_{name}_size"], volume) for name in ("store", "ac_store"))
    files = _inodes(volume)
    if memory := known["nativelink_cas_resources"].get("limits", {}).get("memory"):
        files = min(files, bytes_of(memory) * INDEX_PERCENT // 100 // MEMORY_A_FILE)
    # Action results are small. Beyond a quarter of the files they would take the place of the content that they name.
    results = min(ac // BYTES_A_BLOCK, files // 4)
    return {"store": _eviction(cas, files - results), "ac_store": _eviction(ac, results)}


def _back_soon(tolerations: list[Any]) -> list[Any]:
    """Tolerations that let a pod's replacement start soon after its node is lost, and those that the user states."""
    stated = {toleration.get("key") for toleration in tolerations}
    return tolerations + [
        {"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": LOST_NODE_SECONDS}
        for taint in LOST_NODE_TAINTS
        if taint not in stated
    ]


def _reserved(pool: Mapping[str, Any]) -> dict[str, Any]:
    """The pool's resources, with its disk: a node's disk that fills up takes all workers of the node along.

    The request is the scratch. The limit leaves room for the log and for what is written beside the scratch.
    """
    disk = "ephemeral-storage"
    requests, limits = (pool["resources"].get(kind) or {} for kind in ("requests", "limits"))
    scratch = 0 if pool["scratch_storage_class"] else bytes_of(pool["scratch_size"])
    if disk in limits:
        return dict(pool["resources"])
    if scratch and disk not in requests:
        requests = {**requests, disk: pool["scratch_size"]}
    most = max(scratch, bytes_of(requests.get(disk, 0)))
    limit = most + max(most * BESIDE_PERCENT // 100, BESIDE_LEAST)
    whole = (limit + 2**30 - 1) // 2**30  # Kubernetes warns of fractions of a byte, which 102.4Gi has
    return {**pool["resources"], "requests": requests, "limits": {**limits, disk: f"{whole}Gi"}}


def spot(kind: str) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Node selector and tolerations for spot nodes of a kind, which may be none."""
    if not kind:
        return {}, []
    key, value, tainted = SPOT[kind]
    toleration = {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}
    return {key: value}, [toleration] if tainted else []


def _selector(component: str) -> dict[str, str]:
    """The labels that never change: selectors are immutable."""
    return {"app.kubernetes.io/name": "nativelink", "app.kubernetes.io/component": component}


def _labels(cluster: str, component: str) -> dict[str, str]:
    return {
        **_selector(component),
        "app.kubernetes.io/instance": cluster,
        "app.kubernetes.io/part-of": "nativelink",
        "app.kubernetes.io/managed-by": "nativelink-gitops",
    }


def _namespace(name: str) -> dict[str, Any]:
    """A NetworkPolicy's peer: all pods of a namespace."""
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def _proxies(namespace: str) -> dict[str, str]:
    """The labels that Envoy Gateway gives the proxies of the tree's Gateway."""
    owner = {"name": "nativelink", "namespace": namespace}
    return {f"gateway.envoyproxy.io/owning-gateway-{key}": value for key, value in owner.items()}


def _image(name: str, tag: str, digest: str) -> str:
    return f"{name}:{tag}@{digest}" if digest else f"{name}:{tag}"


def _receiver(url: str, percent: int) -> dict[str, Any]:
    """Where traces go: the address as the collector wants it, the peer of a NetworkPolicy, and the sampled part."""
    scheme, _unused, address = url.rstrip("/").partition("://")
    return {
        "endpoint": address,
        "insecure": scheme == "http",
        "ratio": f"{percent * 0.01:g}",
        **_peer(address, monitoring.SENDERS["scheduler"]),
    }


def _peer(address: str, default_port: int) -> dict[str, Any]:
    """Host, port, and the network of a host that is an IP address: a NetworkPolicy knows no host names."""
    host, _unused, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    return {"host": host, "port": int(port) if port.isdigit() else default_port, "network": network_of(host)}


def _texts(value: object) -> list[str]:
    return [as_text(item) for item in value] if isinstance(value, list) else [as_text(value)]


# What is the same for each cluster. The chart's templates have it written out.
FIXED: dict[str, Any] = {
    "ports": PORTS,
    "otlp": monitoring.SENDERS,
    "kept": KEPT,
    "selectors": {component: _selector(component) for component in COMPONENTS},
    "isolation": {"name": isolation.CONFIG_MAP, "programs": isolation.PROGRAMS},
    "server_tls": SERVER_TLS,
    "client_tls": CLIENT_TLS,
    "priority_class": PRIORITY_CLASS,
    # Tolerations of pods that are the only one of their kind.
    "only_pod_tolerations": _back_soon([]),
    "report_interval": monitoring.REPORT_INTERVAL,
    "reports": monitoring.REPORTS,
    "startup_period": STARTUP_PERIOD,
    "inhibit_rules": monitoring.inhibit_rules(),
    "operator_inhibit_rules": monitoring.operator_inhibit_rules(),
    "demand_by_pool": DEMAND_BY_POOL,
}

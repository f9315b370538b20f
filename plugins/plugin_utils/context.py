"""From a cluster's variables to what its templates need: every derived value is computed here, and only here.

Each component has a class for what is derived for it, and one function that builds it. Templates read
`cas.startup_failures`, and the variables themselves by their full names. Sizes ending in `_bytes` are bytes, timeouts
and graces are seconds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import derived, isolation, monitoring
from .filters import as_text
from .layout import host, layout_of, merged, next_of
from .ports import PORTS
from .providers import behind_envoy_gateway
from .quantities import bytes_of, network_of, part_of, seconds_of
from .specs import with_defaults
from .versions import Version, row

Values = Mapping[str, Any]
Features = Mapping[str, bool]

COMPONENTS = (
    *("cas", "scheduler", "redis", "worker", "headroom", "prepull", "collector", "collector-workers", "demand"),
    *("prometheus", "certificates", "edge", "policy", "copier", "verify"),
)

# Seconds around an action that no timeout of NativeLink covers: fetching its inputs, cleaning up, reporting.
ACTION_MARGIN = 300
# ext4 has an inode for each 16 KiB by default, so a store of smaller files runs out of inodes before it is full. A
# twentieth is left for directories, incomplete uploads, and the file system itself.
BYTES_AN_INODE = 16 * 1024
INODE_PERCENT = 95
# NativeLink counts a file in whole blocks of 4 KiB, so no store holds more files than this makes of its bytes.
BYTES_A_BLOCK = 4 * 1024
# Memory that a CAS pod takes for each file of its stores, 450 to 530 bytes with v1.6.6, and the part of its limit that
# all of them may take. The rest is for what comes and goes.
MEMORY_A_FILE = 512
INDEX_PERCENT = 75
# The parts of the content's bytes and of a pod's files that the index of chunks may take. An entry is mostly a file of
# one block, for a blob of several chunks of 512 KiB.
CHUNKS_PERCENT = 1
CHUNKS_FILES_PERCENT = 5
# A full store frees this much at once, but at most a hundredth of its size. The write that finds the store full deletes
# all of it before it is answered; v1.6.6 takes 0.1 to 0.6 ms a file. A twentieth of 160 GiB would take minutes.
EVICT_BYTES = 8 * 1024**2
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
# Cluster Autoscaler waits this long for a pod that it evicts, unless --max-graceful-termination-sec says more.
EVICTION_PATIENCE = 600
SAFE_TO_EVICT = "cluster-autoscaler.kubernetes.io/safe-to-evict"
# Where pods have the files of the Secret for mutual TLS.
CERTIFICATE = {"cert_file": "/tls/tls.crt", "key_file": "/tls/tls.key"}
SERVER_TLS = {**CERTIFICATE, "client_ca_file": "/tls/ca.crt"}
CLIENT_TLS = {**CERTIFICATE, "ca_file": "/tls/ca.crt"}
# The collector records the same for a scheduler in memory.
DEMAND_BY_POOL = (
    "sum by (cluster, namespace, pool) "
    '(label_replace(redis_script_values{key=~".+:demand"}, "pool", "$1", "key", "(.+):demand"))'
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
# The calls that each role may make, as Envoy Gateway matches their paths.
READS = (
    "/google[.]bytestream[.]ByteStream/Read|/build[.]bazel[.]remote[.]execution[.]v2[.](Capabilities/GetCapabilities|"
    "ActionCache/GetActionResult|ContentAddressableStorage/(FindMissingBlobs|BatchReadBlobs|GetTree|SplitBlob))"
)
WRITES = "/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult"
ROLE_PATHS = {
    "read": {"type": "RegularExpression", "value": READS},
    "execute": {"type": "Exact", "value": WRITES, "invert": True},
    "write": {},
}
# NativeLink asks a bucket up to 27 times with it, because libraries below try three times each, and gives up after
# 10 s. Then the client decides. With twice as many v1.6.6 took a minute.
BUCKET_RETRY = {"max_retries": 2, "delay": 0.1, "jitter": 0.5}
# The annotation of a ServiceAccount that says what its pods act as.
PRINCIPALS = {
    "irsa": "eks.amazonaws.com/role-arn",
    "gke": "iam.gke.io/gcp-service-account",
    "azure": "azure.workload.identity/client-id",
}
# Where agents on the node give out credentials. With the others the pod exchanges its token at the provider.
METADATA = {
    "eks_pod_identity": [("169.254.170.23/32", 80)],
    # The second one is where GKE's proxy listens, to which iptables leads.
    "gke": [("169.254.169.254/32", 80), ("169.254.169.252/32", 988)],
}
# Bazel's words for a node's architecture, where they differ from those of Kubernetes.
ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
# Actions that one Bazel runs at once, at most. It may have a thread for each.
MOST_JOBS = 200
# What a client shows of itself, by the key of nativelink_edge_access.
CLIENT_IDENTITIES = {"certificate": "certificate", "issuer": "token", "keys": "key"}
# The headers that say who calls. Envoy removes a client's own, and sets them when it knows.
IDENTITIES = ("x-forwarded-client-cert", "x-nativelink-subject", "x-nativelink-client")
# What the playbook `verify` needs of a cluster, beside its pools.
VERIFIED = (
    *("nativelink_instance_name", "nativelink_namespace", "nativelink_workers_namespace", "nativelink_worker_access"),
    *("nativelink_worker_egress", "nativelink_scheduler_platform_properties"),
)
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


@dataclass(frozen=True)
class ConfigMap:
    """A ConfigMap that kustomize generates: `files` are rendered ones, where the cluster has them."""

    name: str
    namespace: str
    files: Sequence[str]


@dataclass(frozen=True)
class Cas:
    """The CAS. The stores are eviction policies.

    `shards` are the hosts that share the keys, with their weights. Where keys move, `next` is the host that gets them.
    `buckets` are NativeLink's stores of content and results in an object store. `account` has the annotations by which
    the pods prove who they are, and `metadata` where a NetworkPolicy has to let them fetch credentials.
    """

    shards: Sequence[Mapping[str, Any]]
    buckets: Mapping[str, Values]
    account: Mapping[str, str]
    metadata: Sequence[Values]
    storage_class: str
    store: Mapping[str, int]
    ac_store: Mapping[str, int]
    chunks: Mapping[str, int]
    served: str  # a prefix of the names of the stores that are served
    spread: str
    startup_failures: int


@dataclass(frozen=True)
class Scheduler:
    """The scheduler. `demand` tells by pools and the kinds of properties which pool an action waits for, and how much
    of a worker it takes."""

    properties: Mapping[str, str]
    demand: Mapping[str, Any]
    executing_timeout: int
    tolerations: Sequence[Any]


@dataclass(frozen=True)
class Redis:
    """The Redis of the schedulers. `network` is empty for the name of a host."""

    address: str
    host: str
    port: int
    network: str
    storage_class: str
    max_memory: int


@dataclass(frozen=True)
class Pool:
    """A pool of workers. Templates read its keys of the inventory as well, unless a field has the name of one."""

    options: Values
    name: str
    config_map: ConfigMap
    image: str
    platform_properties: Mapping[str, Sequence[str]]
    exec_properties: Mapping[str, str]  # with which an action selects the pool; it reserves nothing
    cpu: str
    isolated: bool
    resources: Values
    slots: int
    target: int
    longest: int
    grace: int
    node_selector: Mapping[str, str]
    tolerations: Sequence[Any]
    annotations: Mapping[str, str]
    fast_store: Mapping[str, int]
    fallback_replicas: int
    failure_threshold: int
    behavior: Values
    scaling: str
    features: Features

    def __getitem__(self, key: str) -> Any:
        """A key of the inventory, where Jinja finds no field."""
        return self.options[key]


@dataclass(frozen=True)
class Edge:
    """The Gateway or the Ingress.

    `rules` allow calls, and `keys` has the Secrets with API keys by the role that a call needs. `writers` says that
    there is a route for action results, and `certificates` is Envoy Gateway's mode of asking for one.
    """

    rules: Sequence[Values]
    keys: Mapping[str, Sequence[str]]
    writers: bool
    certificates: str


@dataclass(frozen=True)
class Clients:
    """What clients are told: addresses with ports, and the identities that the edge takes, any of which is enough.

    `siso` has the properties of the kinds of actions that Chromium knows, and of each pool.
    """

    scheme: str
    executor: str
    cache: str
    tls: bool
    identities: Sequence[str]
    jobs: int
    siso: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Peers:
    """Peers of NetworkPolicies. A rule without peers would admit everything, so templates leave such a rule out."""

    clients: Sequence[Values]
    writers: Sequence[Values]
    metrics: Sequence[Values]


@dataclass(frozen=True)
class Traces:
    """The receiver of traces. `ratio` is the part of all traces that it gets."""

    endpoint: str
    insecure: bool
    ratio: str
    host: str
    port: int
    network: str


@dataclass(frozen=True)
class Prometheus:
    """The Prometheus of the cluster, and what it alerts on and scrapes. `token` says that it lists pods and nodes."""

    address: str
    labels: Mapping[str, str]
    alerts: Sequence[Values]
    targets: Sequence[Values]
    scrapes: Sequence[Values]
    kubelet_paths: Sequence[str]
    kubelet_series: str
    token: bool


@dataclass(frozen=True)
class Context:
    """What the templates of a cluster read. `features` holds the conditions that `render.FILES` names.

    `verify` has the variables of the playbook of that name inside the cluster.
    """

    variables: Values
    features: Features
    version: Version
    labels: Mapping[str, Mapping[str, str]]
    images: Mapping[str, str]
    senders: Sequence[str]
    collectors: Sequence[Values]
    collected: Sequence[Values]
    demand_expiration: int
    upload_timeout: int
    cas: Cas
    scheduler: Scheduler
    redis: Redis
    pools: Sequence[Pool]
    edge: Edge
    clients: Clients
    peers: Peers
    traces: Traces
    prometheus: Prometheus
    config_maps: Mapping[str, ConfigMap]
    verify: Values

    @property
    def scope(self) -> dict[str, Any]:
        """The names of the templates: the variables, what is the same for each cluster, and the fields."""
        return {**self.variables, **FIXED, **vars(self)}


def context(values: Values) -> Context:
    """The context of one cluster, from its effective variables (`specs.effective`), which are valid."""
    known = with_defaults(values)
    pools = [_pool(pool, known) for pool in known["nativelink_worker_pools"]]
    senders = _senders(known, pools)
    edge = _edge(known)
    peers = _peers(known, edge, pools)
    features = _features(known, senders, pools, edge, peers)
    cas = _cas(known, senders)
    collectors = monitoring.collectors(senders, features["collected_demand"])
    return Context(
        variables=known,
        features=features,
        version=row(known["nativelink_version"]),
        labels={component: _labels(known["cluster"], component) for component in COMPONENTS},
        images=_images(known),
        senders=senders,
        collectors=collectors,
        collected=[sender for each in collectors if each["component"] == "collector" for sender in each["senders"]],
        # The values of a scheduler that is gone expire soon. KEDA then has no demand, and keeps the workers.
        demand_expiration=max(5, 3 * known["nativelink_metrics_interval"]),
        upload_timeout=seconds_of(known["nativelink_worker_upload_timeout"]),
        cas=cas,
        scheduler=_scheduler(known, pools),
        redis=_redis(known, cas, features),
        pools=pools,
        edge=edge,
        clients=_clients(known, pools),
        peers=peers,
        traces=_traces(known),
        prometheus=_prometheus(known, features, cas),
        config_maps={
            component: ConfigMap(f"nativelink-{component}-config", known["nativelink_namespace"], paths)
            for component, (feature, paths) in CONFIG_MAPS.items()
            if features[feature]
        },
        verify={
            **{name: known[name] for name in VERIFIED},
            "nativelink_worker_pools": [
                {"name": pool.name, "platform_properties": pool.platform_properties} for pool in pools
            ],
            "verify_address": "services",
            "verify_megabytes": 20,  # because it may run often
        },
    )


# Features ---------------------------------------------------------------------------------------------------------


def _autoscaled(pools: Sequence[Pool]) -> set[str]:
    """What scales pools: `keda`, `hpa` or both."""
    return {pool.scaling for pool in pools} - {"none"}


def _senders(known: Values, pools: Sequence[Pool]) -> list[str]:
    """The workloads that send metrics, if something reads them. On Redis scaling does not."""
    read = known["nativelink_prometheus"] != "none" or known["nativelink_metrics_namespaces"]
    read = read or known["nativelink_traces_endpoint"]
    if not read and not (_autoscaled(pools) and known["nativelink_scheduler_backend"] == "memory"):
        return []
    return [name for name in ("scheduler", "cas", "worker") if name in known["nativelink_metrics"]]


def _features(
    known: Values, senders: Sequence[str], pools: Sequence[Pool], edge: Edge, peers: Peers
) -> dict[str, bool]:
    prometheus, scrapes = known["nativelink_prometheus"], known["nativelink_prometheus_scrapes"]
    scaling, engine = _autoscaled(pools), known["gitops_provider"]
    redis = known["nativelink_scheduler_backend"] == "redis"
    demand = redis and (bool(scaling) or prometheus != "none")
    envoy_gateway = behind_envoy_gateway(known)
    version = row(known["nativelink_version"])
    shared = known["nativelink_cas_store"] == "object_store"
    single = max(known["nativelink_cas_replicas"], known["nativelink_cas_max_replicas"]) == 1
    # What others report. An existing Prometheus is taken to scrape all that exists.
    others = {"cluster": True, "edge": envoy_gateway, "keda": "keda" in scaling, "gitops": engine != "none"}
    scraped = {name: exists and name in scrapes for name, exists in others.items()}
    existing = prometheus in ("operator", "annotations")
    return {
        "always": True,
        "several_schedulers": known["nativelink_scheduler_replicas"] > 1,
        "redis": redis,
        "bundled_redis": redis and known["nativelink_redis_provider"] == "bundled",
        "collector": "scheduler" in senders or "cas" in senders,
        "collected_demand": not redis and "scheduler" in senders,
        "cas_metrics": "cas" in senders,
        "scheduler_metrics": "scheduler" in senders,
        "worker_metrics": "worker" in senders,
        "demand": demand,
        "bundled_prometheus": prometheus == "bundled",
        "bundled_prometheus_with_demand": prometheus == "bundled" and demand,
        "prometheus_operator": prometheus == "operator",
        "prometheus_operator_with_demand": prometheus == "operator" and demand,
        "prometheus_operator_with_kubelets": prometheus == "operator" and "cluster" in scrapes,
        "plain_alerts": prometheus in ("bundled", "annotations"),
        "scrape_annotations": prometheus == "annotations",
        "dashboards": known["nativelink_dashboards"],
        "gateway": known["nativelink_edge"] == "gateway",
        "envoy_gateway": envoy_gateway,
        "envoy_gateway_with_a_single_cas": envoy_gateway and single,
        "envoy_gateway_with_several_cas": envoy_gateway and not single,
        "edge_access": bool(known["nativelink_edge_access"]),
        "edge_writers": edge.writers,
        **{f"edge_keys_{role}": bool(names) for role, names in edge.keys.items()},
        "ingress": known["nativelink_edge"] == "ingress",
        "autoscaled": bool(scaling),
        "keda": "keda" in scaling,
        "isolated_workers": any(pool.isolated for pool in pools),
        "client_writers": bool(peers.writers),
        "compression": known["nativelink_cas_compression"] and version.compression,
        "mutual_tls": bool(known["nativelink_mutual_tls_secret"]),
        "certificates": bool(known["nativelink_mutual_tls_issuer"]),
        "object_store": shared,
        "cas_evicts": not shared and "cas" in senders,
        "object_store_keys": shared and known["nativelink_object_store_identity"] == "secret",
        "object_store_ca": shared and bool(known["nativelink_object_store_ca_config_map"]),
        "s3": shared and known["nativelink_object_store_provider"] == "s3",
        "azure_identity": shared and known["nativelink_object_store_identity"] == "azure",
        "cas_autoscaled": known["nativelink_cas_max_replicas"] > 0,
        "scheduler_counts": version.counts and "scheduler" in senders,
        "cas_counts": version.counts and "cas" in senders,
        # The scrape annotations leave out the demand of a scheduler in memory.
        "demand_of_all": not redis and "scheduler" in senders and prometheus in ("bundled", "operator"),
        "demand_by_pool": redis and prometheus != "none",
        "edge_tls": bool(known["nativelink_edge_tls_secret"]),
        "edge_client_ca": bool(known["nativelink_edge_client_ca_secret"]),
        "argocd": engine == "argocd",
        "flux": engine == "flux",
        **{f"{name}_scraped": found for name, found in scraped.items()},
        **{f"{name}_series": scraped[name] or (exists and existing) for name, exists in others.items()},
    }


# Components -------------------------------------------------------------------------------------------------------


def _cas(known: Values, senders: Sequence[str]) -> Cas:
    """The stores of a CAS pod share its volume's inodes and its memory. In front of a bucket there are no results."""
    shared = known["nativelink_cas_store"] == "object_store"
    volume = bytes_of(known["nativelink_cas_volume_size"])
    cas = part_of(known["nativelink_cas_store_size"], volume)
    ac = 0 if shared else part_of(known["nativelink_cas_ac_store_size"], volume)
    files = _inodes(volume)
    if memory := known["nativelink_cas_resources"].get("limits", {}).get("memory"):
        files = min(files, bytes_of(memory) * INDEX_PERCENT // 100 // MEMORY_A_FILE)
    # Action results are small. Beyond a quarter of the files they would take the place of the content that they name.
    results = min(ac // BYTES_A_BLOCK, files // 4)
    index = cas * CHUNKS_PERCENT // 100 if known["nativelink_cas_chunking"] else 0
    entries = min(index // BYTES_A_BLOCK, files * CHUNKS_FILES_PERCENT // 100)
    first_class = next((item["name"] for item in known["storage_classes_list"]), "")
    space = known["nativelink_namespace"]
    identity, principal = known["nativelink_object_store_identity"], known["nativelink_object_store_principal"]
    return Cas(
        shards=[
            {"host": host(old, space), "next": host(new, space) if new != old else "", "weight": weight}
            for old, new, weight in merged(layout_of(known), next_of(known))
        ]
        or [{"host": f"nativelink-cas-internal.{space}.svc", "weight": 1}],
        buckets={kind: _bucket(known, kind) for kind in ("cas", "ac")} if shared else {},
        account={PRINCIPALS[identity]: principal} if shared and principal else {},
        metadata=[
            {"to": [{"ipBlock": {"cidr": network}}], "ports": [{"protocol": "TCP", "port": port}]}
            for network, port in METADATA.get(identity, [])
            if shared
        ],
        storage_class=known["nativelink_cas_storage_class"] or first_class,
        store=_eviction(cas - index, files - results - entries),
        ac_store=_eviction(ac, results),
        chunks=_eviction(index, entries),
        served="COUNTED_" if "cas" in senders else "",
        spread={"required": "DoNotSchedule", "preferred": "ScheduleAnyway"}[known["nativelink_cas_node_spread"]],
        startup_failures=max(1, known["nativelink_cas_startup_timeout"] // STARTUP_PERIOD),
    )


def _bucket(known: Values, kind: str) -> dict[str, Any]:
    """NativeLink's `experimental_cloud_object_store` of content (`cas`) or of results (`ac`)."""
    given = {
        name: known[f"nativelink_object_store_{name}"] for name in ("bucket", "region", "account", "endpoint", "prefix")
    }
    store: dict[str, Any] = {
        "s3": {"provider": "aws", "bucket": given["bucket"], "region": given["region"]},
        # It would go on without credentials otherwise.
        "gcs": {"provider": "gcs", "bucket": given["bucket"], "authentication_required": True},
        "azure": {"provider": "azure", "container": given["bucket"], "account_name": given["account"]},
    }[known["nativelink_object_store_provider"]]
    if store["provider"] == "azure" and known["nativelink_object_store_identity"] == "secret":
        store["sas_url"] = "${AZURE_SAS_URL}"
    elif store["provider"] == "azure" and given["endpoint"]:
        store["endpoint"] = given["endpoint"]
    return {
        **store,
        "key_prefix": f"{given['prefix']}{kind}/",
        "consider_expired_after_s": known["nativelink_object_store_expiry_days"] * 86400,
        "insecure_allow_http": given["endpoint"].startswith("http://"),
        "retry": BUCKET_RETRY,
    }


def _scheduler(known: Values, pools: Sequence[Pool]) -> Scheduler:
    # Always declared: v1.6.6 lets actions of undeclared properties run anywhere, also those that ask for a persistent
    # worker where no pool offers one. The worker itself reads which protocol the action asks for.
    properties = {**known["nativelink_scheduler_platform_properties"], "supports-workers": "exact"}
    properties.setdefault("requires-worker-protocol", "ignore")
    # NativeLink's scheduler keeps the last of several values of a property.
    offers = [
        {
            "name": pool.name,
            "slots": pool.slots,
            "properties": {key: texts[-1] for key, texts in pool.platform_properties.items() if texts},
        }
        for pool in pools
    ]
    return Scheduler(
        properties=properties,
        demand={"pools": offers, "kinds": properties},
        # It frees what a crashed scheduler left in Redis. A value below an action's time would fail healthy builds.
        executing_timeout=max(pool.grace for pool in pools),
        tolerations=_back_soon(known["nativelink_scheduler_tolerations"]),
    )


def _redis(known: Values, cas: Cas, features: Features) -> Redis:
    address = f"nativelink-redis:{PORTS['redis']}" if features["bundled_redis"] else known["nativelink_redis_address"]
    memory = known["nativelink_redis_resources"].get("limits", {}).get("memory")
    return Redis(
        address=address,
        **_peer(address, PORTS["redis"]),
        storage_class=known["nativelink_redis_storage_class"] or cas.storage_class,
        max_memory=derived.redis_may_fill(memory) if memory else 0,
    )


def _pool(pool: Values, known: Values) -> Pool:
    name, longest = pool["name"], seconds_of(pool["longest_action"])
    scaling = derived.scaling_of(pool, known)
    scratch = bytes_of(pool["scratch_size"])
    stated = {key: _texts(value) for key, value in pool["platform_properties"].items()}
    declared = known["nativelink_scheduler_platform_properties"]
    offered = derived.derived_properties(pool, declared) | stated
    selector = derived.node_selector_of(pool)
    architecture = selector.get("kubernetes.io/arch", "amd64")
    slots = pool["slots"] or derived.cpus_of(pool)
    store = part_of(pool["fast_store_size"], scratch)
    image, digest = pool["image"], pool["image_digest"]
    if not image:
        image, digest = known["nativelink_worker_image"], digest or known["nativelink_worker_image_digest"]
    # As long as an action that starts just before the drain may take to the report of its result.
    grace = longest + seconds_of(known["nativelink_worker_upload_timeout"]) + ACTION_MARGIN
    _unused, tolerations = derived.spot(pool["spot"])
    return Pool(
        options=pool,
        name=name,
        config_map=ConfigMap(
            f"nativelink-worker-{name}-config",
            known["nativelink_workers_namespace"],
            (f"worker/{name}/worker.json5", "worker/start.sh", "worker/precondition.sh", "worker/drain.sh"),
        ),
        image=f"{image}@{digest}" if digest else image,
        platform_properties=offered,
        # The scheduler keeps the last of several values.
        exec_properties={
            key: texts[-1] for key, texts in offered.items() if texts and declared.get(key) in ("exact", "priority")
        },
        cpu=ARCHITECTURES.get(architecture, architecture),
        isolated=derived.isolation_of(pool, known) == "users",
        resources=_reserved(pool),
        slots=slots,
        target=pool["target"] or slots,
        longest=longest,
        grace=grace,
        node_selector=selector,
        tolerations=[*tolerations, *pool["tolerations"]],
        # An eviction drains too, as long as the evictor has the patience.
        annotations={SAFE_TO_EVICT: as_text(grace <= EVICTION_PATIENCE), **pool["annotations"]},
        fast_store=_eviction(store, _inodes(scratch) // derived.COPIES),
        # Without a metric KEDA keeps at least this many workers. A fallback of 0 would scale the pool to zero.
        fallback_replicas=max(1, pool["min_replicas"]),
        failure_threshold=derived.failing_polls(pool),
        behavior={"scaleUp": {**SCALE_UP, **pool["scale_up"]}, "scaleDown": {**SCALE_DOWN, **pool["scale_down"]}},
        scaling=scaling,
        features={
            "always": True,
            "keda": scaling == "keda",
            "hpa": scaling == "hpa",
            "headroom": pool["headroom"] > 0,
            "prepull": pool["prepull"],
        },
    )


def _edge(known: Values) -> Edge:
    access = known["nativelink_edge_access"]
    levels = list(ROLE_PATHS)  # each role may do what those before it may
    return Edge(
        rules=[_rule(entry) for entry in access if not entry["keys"]],
        keys={
            level: [entry["keys"] for entry in access if entry["keys"] and entry["role"] in levels[number:]]
            for number, level in enumerate(levels)
        },
        writers=any(entry["role"] == "write" for entry in access),
        certificates="RequireAndVerify" if all(entry["certificate"] for entry in access) else "VerifyIfGiven",
    )


def _rule(entry: Values) -> dict[str, Any]:
    """What allows the calls of an identity: an expression on its certificate, or the claims of its token."""
    name = entry["certificate"]
    kind = "uri" if "://" in name else "dns"
    return {
        "path": ROLE_PATHS[entry["role"]],
        "cel": f"connection.{kind}_san_peer_certificate == '{name}'" if name else "",
        "issuer": entry["issuer"],
        "claims": [
            {"name": claim, "valueType": "StringArray", "values": value}
            if isinstance(value, list)
            else {"name": claim, "valueType": "String", "values": [value]}
            for claim, value in sorted(entry["claims"].items())
        ],
    }


def _clients(known: Values, pools: Sequence[Pool]) -> Clients:
    """Without an edge these are the Services, and each has its own address."""
    space, tls = known["nativelink_namespace"], False
    executor, cache = (f"nativelink-{name}.{space}.svc:{PORTS[name]}" for name in ("scheduler", "cas"))
    identities: list[str] = []
    if known["nativelink_edge"] != "none":
        tls = bool(known["nativelink_edge_tls_secret"])
        executor = cache = f"{known['nativelink_hostname'] or 'ADDRESS'}:{443 if tls else 80}"
        access = known["nativelink_edge_access"]
        identities = [name for key, name in CLIENT_IDENTITIES.items() if any(entry[key] for entry in access)]
        if known["nativelink_edge_client_ca_secret"] and not access:
            identities = ["certificate"]
    first = pools[0]
    by_pool = {pool.name: pool.exec_properties for pool in pools}
    return Clients(
        scheme="grpcs" if tls else "grpc",
        executor=executor,
        cache=cache,
        tls=tls,
        identities=identities,
        jobs=min(MOST_JOBS, first.slots * first["max_replicas"]),
        siso={"default": first.exec_properties, "large": first.exec_properties} | by_pool,
    )


def _peers(known: Values, edge: Edge, pools: Sequence[Pool]) -> Peers:
    namespace, edges = known["ingress_namespace"], []
    # A cloud's own controller sends clients in from IP ranges, and lives in no namespace.
    if known["nativelink_edge"] != "none" and namespace:
        # Proxies of other Gateways are in the same namespace.
        proxies = {"podSelector": {"matchLabels": _proxies(known["nativelink_namespace"])}}
        edges = [{**_namespace(namespace), **(proxies if behind_envoy_gateway(known) else {})}]
    readers = [known["keda_namespace"]] if "keda" in _autoscaled(pools) else []
    readers += known["nativelink_metrics_namespaces"]
    verifier = [{"podSelector": {"matchLabels": _selector("verify")}}] if known["nativelink_verify_image"] else []
    return Peers(
        clients=[*edges, *verifier, *known["nativelink_client_peers"]],
        writers=[*(edges if edge.writers else []), *known["nativelink_writer_peers"]],
        metrics=[_namespace(name) for name in dict.fromkeys(readers)],
    )


def _traces(known: Values) -> Traces:
    scheme, _unused, address = known["nativelink_traces_endpoint"].rstrip("/").partition("://")
    return Traces(
        endpoint=address,
        insecure=scheme == "http",
        ratio=f"{known['nativelink_traces_percent'] * 0.01:g}",
        **_peer(address, monitoring.SENDERS["scheduler"]),
    )


def _prometheus(known: Values, features: Features, cas: Cas) -> Prometheus:
    names = monitoring.names(known, features, cas.store)
    wanted = known["nativelink_prometheus_scrapes"]
    ours = f"http://nativelink-prometheus.{known['nativelink_namespace']}.svc:{PORTS['prometheus']}"
    return Prometheus(
        address=known["nativelink_prometheus_address"] or ours,
        labels={**_labels(known["cluster"], "prometheus"), **known["nativelink_prometheus_labels"]},
        alerts=monitoring.groups(known, names, features) if known["nativelink_prometheus"] != "none" else [],
        targets=monitoring.targets(features),
        scrapes=monitoring.scrapes(wanted, names, features),
        kubelet_paths=["/metrics", "/metrics/cadvisor"] if "cluster" in wanted else [],
        kubelet_series=names["kubelet_series"],
        token=bool(wanted),
    )


# Parts ------------------------------------------------------------------------------------------------------------


def _images(known: Values) -> dict[str, str]:
    """The images with their tags. Those of NativeLink itself have one tag."""
    found = {}
    for name in ("", "worker_init_", "redis_", "headroom_", "collector_", "redis_exporter_", "prometheus_", "copier_"):
        tag = known.get(f"nativelink_{name}version", known["nativelink_version"])
        image, digest = f"{known[f'nativelink_{name}image']}:{tag}", known[f"nativelink_{name}image_digest"]
        found[name.rstrip("_") or "nativelink"] = f"{image}@{digest}" if digest else image
    return found


def _inodes(volume: int) -> int:
    """Files that a volume of so many bytes has room for."""
    return volume * INODE_PERCENT // 100 // BYTES_AN_INODE


def _eviction(store: int, files: int) -> dict[str, int]:
    """NativeLink's `eviction_policy` of a store of so many bytes and files."""
    return {"max_bytes": store, "evict_bytes": min(store // 100, EVICT_BYTES), "max_count": files}


def _back_soon(tolerations: list[Any]) -> list[Any]:
    """Tolerations that let a pod's replacement start soon after its node is lost, and those that the user states."""
    stated = {toleration.get("key") for toleration in tolerations}
    return tolerations + [
        {"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": LOST_NODE_SECONDS}
        for taint in LOST_NODE_TAINTS
        if taint not in stated
    ]


def _reserved(pool: Values) -> dict[str, Any]:
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
    "identities": IDENTITIES,
    "server_tls": SERVER_TLS,
    "client_tls": CLIENT_TLS,
    "priority_class": PRIORITY_CLASS,
    # Tolerations of pods that are the only one of their kind.
    "only_pod_tolerations": _back_soon([]),
    "report_interval": monitoring.REPORT_INTERVAL,
    "reports": monitoring.REPORTS,
    "startup_period": STARTUP_PERIOD,
    "inhibit_rules": monitoring.inhibit_rules(operator=False),
    "operator_inhibit_rules": monitoring.inhibit_rules(operator=True),
    "demand_by_pool": DEMAND_BY_POOL,
}

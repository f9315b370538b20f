"""The alerts of a cluster, and which of them says nothing new while another one fires.

`docs/alerts/<name>.md` says what each means and what to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .quantities import midnight_of, seconds_of

CRITICAL, WARNING = "critical", "warning"
# The labels of every alert that name the entry of the inventory. `namespace` is that of NativeLink, also where a worker
# is the object, so that an AlertmanagerConfig of that namespace covers all alerts.
ENTRY = ("cluster", "namespace")


@dataclass(frozen=True)
class Alert:
    """An alert. `needs` are the conditions of `template_context()["features"]` without which its series do not exist.

    `summary` names the object, and may use Prometheus' templates. An alert may stand here several times, with `needs`
    that exclude each other.
    """

    name: str
    group: str
    severity: str
    needs: tuple[str, ...]
    wait: str
    expression: str
    summary: str
    description: str


@dataclass(frozen=True)
class Inhibition:
    """While one of `sources` fires, no one is notified of the `targets` of the same cluster.

    Both have the same `equal` labels. Only targets with a `label` of this `value` count, if it is stated.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    equal: tuple[str, ...] = ()
    label: str = ""
    value: str = ""


_EDGE = ("NativeLinkEdgeErrors", "NativeLinkEdgeGivesUp")
# A target is never more severe than its source.
INHIBITIONS = (
    Inhibition(
        ("NativeLinkRedisDown",),
        (
            "NativeLinkSchedulerDown",
            "NativeLinkSchedulerLoopDead",
            "NativeLinkSchedulerNotMatching",
            "NativeLinkDemandLost",
            "NativeLinkKEDAFallback",
        ),
    ),
    Inhibition(
        ("NativeLinkSchedulerDown",),
        (
            "NativeLinkSchedulerLoopDead",
            "NativeLinkSchedulerNotMatching",
            "NativeLinkWorkersGivenUp",
            "NativeLinkDemandLost",
            "NativeLinkKEDAFallback",
        ),
    ),
    Inhibition(("NativeLinkRedisDown", "NativeLinkSchedulerDown"), _EDGE, label="route", value="nativelink-execution"),
    Inhibition(("NativeLinkSchedulerLoopDead",), ("NativeLinkSchedulerNotMatching",)),
    Inhibition(("NativeLinkDemandLost",), ("NativeLinkKEDAFallback",)),
    # The collector has both.
    Inhibition(
        ("NativeLinkDemandLost", "NativeLinkSchedulerDown"),
        ("NativeLinkMetricsLost",),
        label="source",
        value="scheduler",
    ),
    Inhibition(("NativeLinkCASPodDown",), ("NativeLinkUploadErrors", "NativeLinkCacheHitRateCollapsed")),
    Inhibition(("NativeLinkCASPodDown",), _EDGE, label="route", value="nativelink-cache"),
    Inhibition(("NativeLinkCASDiskFull", "NativeLinkCASInodesFull"), ("NativeLinkUploadErrors",)),
    Inhibition(("NativeLinkWorkersPending",), ("NativeLinkPoolAtMaximum",), equal=("pool",)),
    # These workers are the ones that the scheduler has given up.
    Inhibition(("NativeLinkWorkerOutOfMemory", "NativeLinkWorkerEvicted"), ("NativeLinkWorkersGivenUp",)),
    Inhibition(("NativeLinkEdgeErrors",), ("NativeLinkEdgeGivesUp",), equal=("route",)),
    Inhibition(("NativeLinkGitOpsFailing",), ("NativeLinkGitOpsOutOfSync",)),
)


def series(name: str, /, **labels: str) -> str:
    """A selector of PromQL. A value that begins with ~ is a regular expression, one with !~ is a negated one."""
    stated = []
    for key, value in sorted(labels.items()):
        operator = next((each for each in ("!~", "~") if value.startswith(each)), "")
        text = value.removeprefix(operator).replace("\\", r"\\").replace('"', r"\"")
        stated.append(f'{key}{"=~" if operator == "~" else operator or "="}"{text}"')
    return f"{name}{{{','.join(stated)}}}" if stated else name


def _named(expression: str, label: str, source: str, pattern: str) -> str:
    """Give the series of an expression one more label, from the first group of a pattern of another label."""
    return f'label_replace({expression}, "{label}", "$1", "{source}", "{pattern}")'


def _happened(name: str, window: str, /, **labels: str) -> str:
    """The events in a window, by namespace and pod, for a counter that NativeLink sends only after the first event.

    increase() misses that first one. A series counts as new only if its pod was there before, because a Prometheus that
    has just started knows no series from before.
    """
    counter = series(name, **labels)
    pod = {key: labels[key] for key in ("namespace", "component")}
    before = f"{series('nativelink_rpc_server_duration_seconds_count', **pod)} offset {window}"
    new = f"({counter} unless {counter} offset {window}) and on (namespace, pod) {before}"
    return f"sum by (namespace, pod) (increase({counter}[{window}]) > 0 or {new}) > 0"


class _Farm:
    """What the expressions of one cluster select by."""

    def __init__(self, known: Mapping[str, Any], pools: Sequence[Mapping[str, Any]]) -> None:
        self.ours, self.workers = known["nativelink_namespace"], known["nativelink_workers_namespace"]
        self.sync = f"nativelink-{known['cluster']}"
        self.engine = known["gitops_namespace"]
        names = [pool["name"] for pool in pools]
        scaled = "|".join(pool["name"] for pool in pools if pool["scaling"] != "none")
        self.first = names[0]
        # A pod of a Deployment has two more parts in its name.
        self.pod_pool = "nativelink-worker-(.+)-[^-]+-[^-]+"
        self.pods = {"namespace": self.workers, "pod": f"~nativelink-worker-({'|'.join(names)})-[^-]+-[^-]+"}
        self.autoscaler = {
            "namespace": self.workers,
            "horizontalpodautoscaler": f"~(keda-hpa-)?nativelink-worker-({scaled})",
        }
        self.scaled_object = {"namespace": self.workers, "scaled_resource": f"~nativelink-worker-({scaled})"}
        self.cas_pods = {"namespace": self.ours, "pod": "~nativelink-cas-[0-9]+"}
        self.cas_volumes = {"namespace": self.ours, "persistentvolumeclaim": "~data-nativelink-cas-[0-9]+"}
        self.scheduler = {"namespace": self.ours, "component": "scheduler"}
        self.cas = {"namespace": self.ours, "component": "cas"}
        self.routes = {"envoy_cluster_name": f"~grpcroute/{self.ours}/nativelink-(cache|execution)/.+"}
        self.pool_queries = {stage: f"~({'|'.join(names)}):{stage}" for stage in ("queued", "executing")}

    def lookups(self, window: str, result: str) -> str:
        """The lookups of action results in a window."""
        selector = series(
            "nativelink_cache_operations_total",
            namespace=self.ours,
            cache_type="ac",
            cache_operation_name="read",
            cache_operation_result=result,
        )
        return f"sum(increase({selector}[{window}]))"

    def stage(self, stage: str) -> str:
        """The actions in a stage, where the scheduler is in memory."""
        return f"sum({series('nativelink_execution_active_count', namespace=self.ours, execution_stage=stage)})"

    def by_pool(self, stage: str) -> str:
        """The actions in a stage by pool, on Redis."""
        counted = series("redis_script_values", namespace=self.ours, key=self.pool_queries[stage])
        return f"sum by (pool) ({_named(counted, 'pool', 'key', '(.+):[a-z]+')})"

    def by_route(self, name: str, /, **labels: str) -> str:
        """The rate of a counter of Envoy by route."""
        rate = f"rate({series(name, **self.routes, **labels)}[5m])"
        return f"sum by (route) ({_named(rate, 'route', 'envoy_cluster_name', 'grpcroute/[^/]+/([^/]+)/.+')})"

    def at_maximum(self) -> str:
        """The pools with as many workers as their autoscaler may start."""
        current, most = (
            series(f"kube_horizontalpodautoscaler_{each}_replicas", **self.autoscaler)
            for each in ("status_current", "spec_max")
        )
        return _named(
            f"({current} >= {most})", "pool", "horizontalpodautoscaler", "(?:keda-hpa-)?nativelink-worker-(.+)"
        )


def _sources(farm: _Farm) -> tuple[tuple[str, tuple[str, ...], str], ...]:
    """The sources of metrics that we scrape: the name, the conditions, and a series that it always has."""
    passes = series("nativelink_scheduler_matching_passes_total", **farm.scheduler)
    argocd = series("argocd_app_info", namespace=farm.engine, name=farm.sync)
    flux = series("gotk_reconcile_duration_seconds_count", namespace=farm.engine, kind="Kustomization", name=farm.sync)
    return (
        ("scheduler", ("scheduler_counts",), passes),
        ("cas", ("cas_counts",), series("nativelink_health_checks_total", **farm.cas)),
        ("edge", ("edge_scraped",), series("envoy_cluster_membership_total", **farm.routes)),
        ("keda", ("keda_scraped",), series("keda_build_info")),
        ("argocd", ("gitops_scraped", "argocd"), argocd),
        ("flux", ("gitops_scraped", "flux"), flux),
        ("kube-state-metrics", ("cluster_scraped",), series("kube_pod_info", namespace=farm.ours)),
        ("kubelet", ("cluster_scraped",), series("container_memory_working_set_bytes", namespace=farm.ours)),
    )


def alerts(known: Mapping[str, Any], features: Mapping[str, bool], pools: Sequence[Mapping[str, Any]]) -> list[Alert]:
    """All alerts, with the expressions of one cluster. `groups` leaves out those whose `needs` the cluster lacks."""
    farm = _Farm(known, pools)
    return [
        *_cas(farm),
        *_scheduler(farm),
        *_pools(farm),
        *_demand(farm),
        *_edge(farm),
        *_mutual_tls(known),
        *_gitops(known, farm),
        *_lost(farm, features),
    ]


def _cas(farm: _Farm) -> Iterator[Alert]:
    ready = series("kube_pod_status_ready", **farm.cas_pods, condition="true")
    replicas, running = (
        series(f"kube_statefulset_{each}", namespace=farm.ours, statefulset="nativelink-cas")
        for each in ("replicas", "status_replicas_ready")
    )
    yield Alert(
        "NativeLinkCASPodDown",
        "cas",
        CRITICAL,
        ("cluster_series",),
        "3m",
        # These two have the label pod of what tells of them.
        f"max by (namespace, pod) ({ready}) == 0"
        f" or on (namespace) max by (namespace, statefulset) ({running} < {replicas})",
        "{{ with $labels.pod }}CAS pod {{ . }} is not ready{{ else }}A pod of nativelink-cas is missing{{ end }}",
        "The content in the pod's slice is away. Builds that need it wait or fail.",
    )
    for name, what, left, whole in (
        ("NativeLinkCASDiskFull", "bytes", "available_bytes", "capacity_bytes"),
        ("NativeLinkCASInodesFull", "inodes", "inodes_free", "inodes"),
    ):
        free, size = (series(f"kubelet_volume_stats_{each}", **farm.cas_volumes) for each in (left, whole))
        yield Alert(
            name,
            "cas",
            CRITICAL,
            ("cluster_series",),
            "5m",
            f"max by (namespace, persistentvolumeclaim) ({free} / {size}) < 0.05",
            "{{ $labels.persistentvolumeclaim }} has {{ $value | humanizePercentage }} of its " + what + " left",
            "NativeLink deletes old content before that, so something else fills the volume. Uploads will fail.",
        )
    writes = {"rpc_service": "google.bytestream.ByteStream", "rpc_method": "Write"}
    count = "nativelink_rpc_server_duration_seconds_count"
    yield Alert(
        "NativeLinkUploadsRefused",
        "cas",
        WARNING,
        ("cas_counts",),
        "",
        _happened(count, "10m", **farm.cas, **writes, rpc_grpc_status_code="3"),
        "CAS pod {{ $labels.pod }} has refused an upload",
        "The size or the hash of what a client or a worker sent is not what its digest says.",
    )
    failed, all_writes = (
        f"sum by (namespace, pod) (rate({series(count, **farm.cas, **writes, rpc_grpc_status_code=code)}[5m]))"
        for code in ("!~0|1|3", "~.+")
    )
    yield Alert(
        "NativeLinkUploadErrors",
        "cas",
        CRITICAL,
        ("cas_counts",),
        "2m",
        f"{failed} / {all_writes} > 0.05",
        "{{ $value | humanizePercentage }} of the uploads to CAS pod {{ $labels.pod }} fail",
        "The pod cannot write to its volume, or does not reach other CAS pods. Builds fail, or run without a cache.",
    )

    # The series of the hits begins with the first one.
    now = f"({farm.lookups('30m', 'hit')} or vector(0)) / {farm.lookups('30m', '~hit|miss')}"
    usual = f"{farm.lookups('4h', 'hit')} / {farm.lookups('4h', '~hit|miss')}"
    yield Alert(
        "NativeLinkCacheHitRateCollapsed",
        "cas",
        WARNING,
        ("cas_metrics",),
        "15m",
        f"{now} < 0.5 * ({usual} > 0.2) and {farm.lookups('30m', '~hit|miss')} > 100",
        "The action cache answers {{ $value | humanizePercentage }} of the lookups of NativeLink in " + farm.ours,
        "That is less than half of the rate of the last 4 hours, so builds run what they have run before.",
    )


def _scheduler(farm: _Farm) -> Iterator[Alert]:
    available = series(
        "kube_deployment_status_replicas_available", namespace=farm.ours, deployment="nativelink-scheduler"
    )
    yield Alert(
        "NativeLinkSchedulerDown",
        "scheduler",
        CRITICAL,
        ("cluster_series",),
        "2m",
        f"max by (namespace, deployment) ({available}) == 0",
        "Deployment {{ $labels.deployment }} has no available scheduler",
        "No action starts. Patient clients wait, others fail.",
    )
    stuck = ("NativeLinkSchedulerNotMatching", "scheduler", CRITICAL)
    waits = "Actions wait while none runs. Their builds hang."
    yield Alert(
        *stuck,
        ("demand_of_all",),
        "10m",
        f"{farm.stage('queued')} > 0 unless {farm.stage('executing')} > 0",
        "{{ $value }} actions are queued in " + farm.ours + ", and none runs",
        waits,
    )
    yield Alert(
        *stuck,
        ("demand_by_pool",),
        "10m",
        f"{farm.by_pool('queued')} > 0 unless {farm.by_pool('executing')} > 0",
        "{{ $value }} actions are queued for pool {{ $labels.pool }}, and none runs",
        waits,
    )
    served = series("nativelink_rpc_server_duration_seconds_count", **farm.scheduler)
    passes = series("nativelink_scheduler_matching_passes_total", **farm.scheduler)
    yield Alert(
        "NativeLinkSchedulerLoopDead",
        "scheduler",
        CRITICAL,
        ("redis", "scheduler_counts"),
        "2m",
        f"group by (namespace, pod) ({served}) unless sum by (namespace, pod) (increase({passes}[3m])) > 0",
        "Scheduler {{ $labels.pod }} does not match actions with workers any more",
        "The scheduler looks ready and takes actions, but gives none to its workers.",
    )
    yield Alert(
        "NativeLinkActionsUnmatched",
        "scheduler",
        WARNING,
        ("demand_by_pool",),
        "5m",
        f"sum({series('redis_script_values', namespace=farm.ours, key='(unmatched):queued')}) > 0",
        "No pool can run {{ $value }} queued actions of NativeLink in " + farm.ours,
        "They ask for platform properties that no pool offers, and wait until their clients give up.",
    )
    lost = _happened(
        "nativelink_worker_disconnections_total", "15m", **farm.scheduler, worker_disconnect_reason="evicted"
    )
    pod = series("kube_pod_info", **farm.pods)
    ended = " - ".join(
        f"(count(group by (pod) ({each})) or vector(0))" for each in (f"last_over_time({pod}[15m])", pod)
    )
    yield Alert(
        "NativeLinkWorkersGivenUp",
        "scheduler",
        WARNING,
        ("scheduler_counts", "cluster_series"),
        "2m",
        f"sum({lost}) > 1.1 * ({ended}) + 0.5",
        "The scheduler has given up {{ $value | humanize }} workers of " + farm.workers,
        "More workers have left the scheduler than pods have ended: they were killed, or did not answer in time. "
        "What they ran starts anew.",
    )


def _pools(farm: _Farm) -> Iterator[Alert]:
    full = ("NativeLinkPoolAtMaximum", "workers", WARNING)
    said = "All {{ $value }} workers of pool {{ $labels.pool }} run, and actions wait"
    more = "The pool has reached its max_replicas for a quarter of an hour. Builds take longer."
    scaled = ("cluster_series", "autoscaled")
    for need, queue in (
        ("demand_of_all", f"and on () ({farm.stage('queued')} > 0)"),
        ("demand_by_pool", f"and on (pool) ({farm.by_pool('queued')} > 0)"),
    ):
        yield Alert(*full, (*scaled, need), "15m", f"max by (pool) ({farm.at_maximum()} {queue}) > 0", said, more)
    pending = series("kube_pod_status_phase", **farm.pods, phase="Pending")
    long = f"min_over_time({pending}[10m]) == 1 and {pending} offset 10m == 1"
    yield Alert(
        "NativeLinkWorkersPending",
        "workers",
        WARNING,
        ("cluster_series",),
        "1m",
        f"count by (pool) (group by (pool, pod) ({_named(f'({long})', 'pool', 'pod', farm.pod_pool)})) > 0",
        "{{ $value }} workers of pool {{ $labels.pool }} have been pending for 10 minutes",
        "They find no node, or their image or their volume does not come.",
    )
    restarts = series("kube_pod_container_status_restarts_total", **farm.pods)
    killed = series("kube_pod_container_status_last_terminated_reason", **farm.pods, reason="OOMKilled")
    memory = f"(increase({restarts}[15m]) > 0 and on (namespace, pod, container) {killed} == 1)"
    yield Alert(
        "NativeLinkWorkerOutOfMemory",
        "workers",
        WARNING,
        ("cluster_series",),
        "",
        f"max by (pool, pod) ({_named(memory, 'pool', 'pod', farm.pod_pool)}) > 0",
        "Worker {{ $labels.pod }} was killed because it ran out of memory",
        "All its actions start anew on other workers, and may take those along.",
    )
    evicted = series("kube_pod_status_reason", **farm.pods, reason="Evicted")
    ended = series("kube_pod_completion_time", **farm.pods)
    recently = f"({evicted} == 1 and on (namespace, pod) time() - {ended} < 1800)"
    yield Alert(
        "NativeLinkWorkerEvicted",
        "workers",
        WARNING,
        ("cluster_series",),
        "",
        f"max by (pool, pod) ({_named(recently, 'pool', 'pod', farm.pod_pool)}) > 0",
        "The kubelet has evicted worker {{ $labels.pod }}",
        "Its node lacks disk or memory, or the worker has filled its scratch. Its actions start anew.",
    )
    deletion = series("kube_pod_deletion_timestamp", **farm.pods)
    yield Alert(
        "NativeLinkDrainStuck",
        "workers",
        WARNING,
        ("cluster_series",),
        "1m",
        # The timestamp is when the grace of the pod's pool ends.
        f"max by (pool, pod) ({_named(f'(time() - {deletion})', 'pool', 'pod', farm.pod_pool)}) > 120",
        "Worker {{ $labels.pod }} is still there {{ $value | humanizeDuration }} after its drain had to end",
        "The grace of its pool is over, but the kubelet has not removed the pod. Its node may be lost.",
    )


def _demand(farm: _Farm) -> Iterator[Alert]:
    used, most = (series(f"redis_memory_{each}_bytes", namespace=farm.ours) for each in ("used", "max"))
    # While Redis is away, the exporter tries for longer than a scrape lasts (1.45, 13 s: seen).
    scraped = series("up", job="nativelink-demand", namespace=farm.ours)
    exporter = series("kube_deployment_status_replicas_available", namespace=farm.ours, deployment="nativelink-demand")
    yield Alert(
        "NativeLinkRedisDown",
        "demand",
        CRITICAL,
        ("demand_by_pool",),
        "1m",
        f"max({series('redis_up', namespace=farm.ours)}) == 0"
        f" or on () (max({scraped}) == 0 and on () max({exporter}) > 0)",
        "The Redis of NativeLink in " + farm.ours + " does not answer",
        "No action starts or ends. Schedulers wait for half a minute before they drop results.",
    )
    yield Alert(
        "NativeLinkRedisFull",
        "demand",
        CRITICAL,
        ("demand_by_pool",),
        "5m",
        f"max({used} / ({most} > 0)) > 0.9",
        "The Redis of NativeLink in " + farm.ours + " has filled {{ $value | humanizePercentage }} of its memory",
        "A full Redis refuses new actions.",
    )
    lost = ("NativeLinkDemandLost", "demand", CRITICAL)
    told = "The demand of NativeLink in " + farm.ours + " is not known"
    held = "The autoscalers keep the workers that there are, and start none."
    memory = series("nativelink_execution_active_count", namespace=farm.ours, execution_stage="queued")
    redis = series("redis_script_values", namespace=farm.ours, key=f"{farm.first}:queued")
    yield Alert(*lost, ("demand_of_all", "autoscaled"), "2m", f"max(absent({memory})) == 1", told, held)
    yield Alert(*lost, ("demand_by_pool", "autoscaled"), "2m", f"max(absent({redis})) == 1", told, held)
    requests = "keda_scaler_http_requests_total"
    asked, failed = (
        f"sum by (scaled_resource) (rate({series(requests, **farm.scaled_object, status_code=code)}[5m]))"
        for code in ("~.+", "!~2..")
    )
    yield Alert(
        "NativeLinkKEDAFallback",
        "demand",
        WARNING,
        ("keda_series",),
        "2m",
        _named(f"({failed} / {asked} > 0.5)", "pool", "scaled_resource", "nativelink-worker-(.+)"),
        "{{ $value | humanizePercentage }} of KEDA's requests for the demand of pool {{ $labels.pool }} fail",
        "KEDA falls back to the number of workers that there are, so the pool does not follow the demand.",
    )


def _edge(farm: _Farm) -> Iterator[Alert]:
    answers = "envoy_cluster_upstream_rq_xx"
    failed, all_answers = (farm.by_route(answers, envoy_response_code_class=code) for code in ("5", "~.+"))
    yield Alert(
        "NativeLinkEdgeErrors",
        "edge",
        CRITICAL,
        ("edge_series",),
        "5m",
        f"{failed} / {all_answers} > 0.05",
        "{{ $value | humanizePercentage }} of the requests of {{ $labels.route }} fail at the edge",
        "Envoy answers with 5xx. To gRPC clients that is UNAVAILABLE.",
    )
    given_up = " + ".join(
        farm.by_route(f"envoy_cluster_upstream_{each}")
        for each in (
            "rq_pending_overflow",
            "rq_retry_overflow",
            "rq_retry_limit_exceeded",
            "rq_timeout",
            "cx_overflow",
            "cx_none_healthy",
        )
    )
    # Envoy Gateway has Envoy itself answer while a route has no endpoints.
    itself = series("envoy_http_rq_direct_response", pod=f"~envoy-{farm.ours}-nativelink-.+")
    yield Alert(
        "NativeLinkEdgeGivesUp",
        "edge",
        WARNING,
        ("edge_series",),
        "1m",
        f"({given_up}) > 0 or on () sum(rate({itself}[5m])) > 0",
        "The edge gives up requests{{ with $labels.route }} of {{ . }}{{ end }} of NativeLink in " + farm.ours,
        "Too many requests are open, the retries are used up, a request took too long, or no pod is behind the route.",
    )
    expiry = series(
        "envoy_listener_ssl_certificate_expiration_unix_time_seconds", envoy_tls_certificate=f"~{farm.ours}/.+"
    )
    yield Alert(
        "NativeLinkCertificateExpiry",
        "edge",
        WARNING,
        ("edge_series", "edge_tls"),
        "1h",
        f"min by (envoy_tls_certificate) ({expiry}) - time() < 14 * 86400",
        "The certificate {{ $labels.envoy_tls_certificate }} of the edge expires in {{ $value | humanizeDuration }}",
        "After that no client connects. What renews certificates has not done so.",
    )


def _mutual_tls(known: Mapping[str, Any]) -> Iterator[Alert]:
    day = known["nativelink_mutual_tls_expires"]
    yield Alert(
        "NativeLinkMutualTLSExpiry",
        "workers",
        WARNING,
        ("mutual_tls",),
        "1h",
        # No process reports when its certificate ends.
        f"vector(time()) > {midnight_of(day)} - 30 * 86400",
        f"The certificates of the workers in {known['nativelink_workers_namespace']} end on {day}",
        "After that no worker connects to the scheduler or to a CAS pod, so builds hang.",
    )


def _gitops(known: Mapping[str, Any], farm: _Farm) -> Iterator[Alert]:
    behind, failing = ("NativeLinkGitOpsOutOfSync", "gitops", WARNING), ("NativeLinkGitOpsFailing", "gitops", WARNING)
    application = {"namespace": farm.engine, "name": farm.sync}

    def argocd(**labels: str) -> str:
        return f"max by (name) ({series('argocd_app_info', **application, **labels)}) == 1"

    apart = "The cluster is not what Git says, and the engine does not change that."
    broken = "The engine cannot read or apply the commit, or what it has applied does not become healthy."
    yield Alert(
        *behind,
        ("gitops_series", "argocd"),
        "15m",
        argocd(sync_status="OutOfSync"),
        "Argo CD's Application {{ $labels.name }} is out of sync",
        apart,
    )
    yield Alert(
        *failing,
        ("gitops_series", "argocd"),
        "5m",
        f"{argocd(sync_status='OutOfSync', phase='~Failed|Error')} or {argocd(sync_status='Unknown')}"
        f" or {argocd(health_status='Degraded')}",
        "Argo CD's Application {{ $labels.name }} fails",
        broken,
    )
    runs = series("gotk_reconcile_duration_seconds_count", namespace=farm.engine, kind="Kustomization", name=farm.sync)
    window = max(600, 5 * seconds_of(known["gitops_interval"]))
    yield Alert(
        *behind,
        ("gitops_series", "flux"),
        "5m",
        f"max by (name) (increase({runs}[{window}s])) == 0",
        "Flux's Kustomization {{ $labels.name }} is not reconciled",
        f"{apart} The Kustomization is suspended, or the controller hangs.",
    )
    ready = series("gotk_resource_info", exported_namespace=farm.engine, name=farm.sync, ready="False")
    yield Alert(
        *failing,
        ("gitops_series", "flux"),
        "5m",
        f"max by (customresource_kind, name) ({ready}) == 1",
        "Flux's {{ $labels.customresource_kind }} {{ $labels.name }} fails",
        broken,
    )


def _lost(farm: _Farm, features: Mapping[str, bool]) -> Iterator[Alert]:
    """One rule for all sources of a cluster, because absent() takes one series."""
    absent = [
        f'label_replace(absent({selector}), "source", "{source}", "", "")'
        for source, needs, selector in _sources(farm)
        if all(features[need] for need in needs)
    ]
    if absent:
        yield Alert(
            "NativeLinkMetricsLost",
            "metrics",
            WARNING,
            (),
            "5m",
            f"max by (source) ({' or '.join(absent)}) == 1",
            "No metrics of {{ $labels.source }} arrive for NativeLink in " + farm.ours,
            "Alerts on these metrics cannot fire.",
        )


def groups(
    known: Mapping[str, Any], features: Mapping[str, bool], pools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The groups of Prometheus' alerting rules for a cluster, from its variables with all defaults.

    `features` are the conditions of `template_context()`, and `pools` its pools.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    entry = {"cluster": known["cluster"], "namespace": known["nativelink_namespace"]}
    for alert in alerts(known, features, pools):
        if all(features[need] for need in alert.needs):
            rule = {
                "alert": alert.name,
                "expr": alert.expression,
                **({"for": alert.wait} if alert.wait else {}),
                "labels": {**entry, "severity": alert.severity},
                "annotations": {
                    "summary": alert.summary,
                    "description": alert.description,
                    "runbook_url": f"{known['nativelink_runbook_url'].rstrip('/')}/{alert.name}.md",
                },
            }
            found[alert.group] = [*found.get(alert.group, []), rule]
    return [{"name": f"nativelink-{name}", "rules": rules} for name, rules in sorted(found.items())]


def inhibitions() -> list[dict[str, list[str]]]:
    """The `inhibit_rules` of an Alertmanager's configuration."""
    return [
        {
            "source_matchers": [_one_of(each.sources)],
            "target_matchers": [_one_of(each.targets), *([f'{each.label}="{each.value}"'] if each.label else [])],
            "equal": [*ENTRY, *each.equal],
        }
        for each in INHIBITIONS
    ]


def operator_inhibitions() -> list[dict[str, Any]]:
    """The `inhibitRules` of an AlertmanagerConfig of the Prometheus Operator."""
    return [
        {
            "sourceMatch": [_named_one_of(each.sources)],
            "targetMatch": [
                _named_one_of(each.targets),
                *([{"name": each.label, "matchType": "=", "value": each.value}] if each.label else []),
            ],
            "equal": [*ENTRY, *each.equal],
        }
        for each in INHIBITIONS
    ]


def _one_of(names: Sequence[str]) -> str:
    return f'alertname=~"{"|".join(names)}"'


def _named_one_of(names: Sequence[str]) -> dict[str, str]:
    return {"name": "alertname", "matchType": "=~", "value": "|".join(names)}

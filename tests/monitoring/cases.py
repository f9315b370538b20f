"""For each alert the series that make it fire, and series that look like it but do not. All is written by hand.

There is a sample a minute, in the notation of `promtool test rules`: `1x3` is four times 1, `0+2x3` is 0, 2, 4, 6, `_`
is no sample, and `stale` ends a series. Time begins at 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    """Series, the minute at which the rules of a backend are looked at, and what fires by then: summary and labels.

    The labels are those besides cluster, namespace and severity.
    """

    alert: str
    title: str
    series: dict[str, str]
    minute: int
    fires: dict[str, dict[str, str]] = field(default_factory=dict)
    backend: str = "redis"


CAS_READY = 'kube_pod_status_ready{namespace="nativelink",pod="nativelink-cas-1",uid="1",condition="true"}'
CAS_COUNT = '{namespace="nativelink",statefulset="nativelink-cas",pod="kube-state-metrics-0"}'
DEMAND_UP = 'up{job="nativelink-demand",namespace="nativelink"}'
EXPORTER = 'kube_deployment_status_replicas_available{namespace="nativelink",deployment="nativelink-demand"}'
VOLUME = '{namespace="nativelink",persistentvolumeclaim="data-nativelink-cas-2"}'
_WRITE = 'rpc_service="google.bytestream.ByteStream",rpc_method="Write"'


def writes(code: str) -> str:
    """Return the series of the uploads to a CAS pod with this status."""
    labels = f'namespace="nativelink",component="cas",pod="nativelink-cas-0",{_WRITE},rpc_grpc_status_code="{code}"'
    return f"nativelink_rpc_server_duration_seconds_count{{{labels}}}"


def lookups(result: str) -> str:
    """Return the series of the lookups of clients in the action cache."""
    labels = f'cache_type="ac",cache_operation_name="read",cache_operation_result="{result}"'
    return (
        f'nativelink_cache_operations_total{{namespace="nativelink",component="cas",pod="nativelink-cas-0",{labels}}}'
    )


def scheduler(name: str, pod: str = "nativelink-scheduler-a", labels: str = "") -> str:
    """Return a series of a scheduler."""
    more = f",{labels}" if labels else ""
    return f'nativelink_{name}{{namespace="nativelink",component="scheduler",pod="{pod}"{more}}}'


SERVED = scheduler("rpc_server_duration_seconds_count", labels='rpc_method="ConnectWorker",rpc_grpc_status_code="0"')
EVICTED = scheduler("worker_disconnections_total", labels='worker_disconnect_reason="evicted"')
AVAILABLE = 'kube_deployment_status_replicas_available{namespace="nativelink",deployment="nativelink-scheduler"}'


def stage(name: str) -> str:
    """Return the number of actions in a stage, of a scheduler in memory."""
    return f'nativelink_execution_active_count{{namespace="nativelink",execution_stage="{name}"}}'


def script(key: str) -> str:
    """Return a number that demand.lua counts."""
    return f'redis_script_values{{namespace="nativelink",key="{key}"}}'


def redis(name: str) -> str:
    """Return a series of Redis."""
    return f'redis_{name}{{namespace="nativelink",instance="nativelink-demand:9121"}}'


WORKERS = 'namespace="nativelink-workers"'
WORKER = "nativelink-worker-default-b45d476b8-8fb2z"


def worker(name: str, labels: str = "", pod: str = WORKER) -> str:
    """Return a series of kube-state-metrics of a worker's pod."""
    more = f",{labels}" if labels else ""
    return f'kube_pod_{name}{{{WORKERS},pod="{pod}",uid="{pod[-5:]}"{more}}}'


def autoscaler(name: str) -> str:
    """Return a series of the autoscaler that KEDA makes for a pool."""
    labels = f'{WORKERS},horizontalpodautoscaler="keda-hpa-nativelink-worker-default"'
    return f"kube_horizontalpodautoscaler_{name}_replicas{{{labels}}}"


def polls(code: str) -> str:
    """Return the number of KEDA's requests for the demand of a pool, by the answer's status."""
    labels = f'{WORKERS},scaled_resource="nativelink-worker-default",trigger_name="queued"'
    return f'keda_scaler_http_requests_total{{{labels},status_code="{code}"}}'


def envoy(name: str, route: str = "execution", labels: str = "") -> str:
    """Return a series of Envoy for a route."""
    more = f",{labels}" if labels else ""
    return f'envoy_cluster_{name}{{envoy_cluster_name="grpcroute/nativelink/nativelink-{route}/rule/0"{more}}}'


def answers(code: int, route: str = "execution") -> str:
    """Return the number of answers to requests of a route, by the class of the status."""
    return envoy("upstream_rq_xx", route, f'envoy_response_code_class="{code}"')


LISTENER = 'envoy_listener_ssl_certificate_expiration_unix_time_seconds{envoy_tls_certificate="nativelink/edge-tls"}'
DIRECT = (
    'envoy_http_rq_direct_response{pod="envoy-nativelink-nativelink-4d19",envoy_http_conn_manager_prefix="https-10443"}'
)


def application(sync: str, health: str = "Healthy", phase: str = "Succeeded") -> str:
    """Return Argo CD's series of our Application."""
    state = f'sync_status="{sync}",health_status="{health}",phase="{phase}"'
    return f'argocd_app_info{{namespace="argocd",name="nativelink-test",{state}}}'


RECONCILED = (
    'gotk_reconcile_duration_seconds_count{namespace="flux-system",kind="Kustomization",name="nativelink-test"}'
)


def flux(kind: str, ready: str) -> str:
    """Return the series that kube-state-metrics makes of an object of Flux."""
    labels = f'customresource_kind="{kind}",exported_namespace="flux-system",name="nativelink-test",ready="{ready}"'
    return f"gotk_resource_info{{{labels}}}"


SOURCES = {
    scheduler("scheduler_matching_passes_total", labels='scheduler_match_result="ok"'): "0+4x20",
    'nativelink_health_checks_total{namespace="nativelink",component="cas",pod="nativelink-cas-0"}': "1x20",
    envoy("membership_total"): "1x20",
    "keda_build_info{}": "1x20",
    RECONCILED: "0+1x20",
    'kube_pod_info{namespace="nativelink",pod="nativelink-cas-0"}': "1x20",
    'container_memory_working_set_bytes{namespace="nativelink",pod="nativelink-cas-0"}': "1x20",
}

CASES = (
    Case(
        "NativeLinkCASPodDown",
        "a pod is not ready",
        {CAS_READY: "1 0x10", CAS_READY.replace("cas-1", "cas-0"): "1x10"},
        5,
        {"CAS pod nativelink-cas-1 is not ready": {"pod": "nativelink-cas-1"}},
    ),
    Case(
        "NativeLinkCASPodDown",
        "a pod does not exist",
        {
            CAS_READY: "1 stale",
            f"kube_statefulset_replicas{CAS_COUNT}": "3x10",
            f"kube_statefulset_status_replicas_ready{CAS_COUNT}": "3 2x10",
        },
        5,
        {"A pod of nativelink-cas is missing": {"statefulset": "nativelink-cas"}},
    ),
    Case("NativeLinkCASPodDown", "a pod is back after two minutes", {CAS_READY: "1 0 0 1x10"}, 5),
    Case(
        "NativeLinkCASPodDown",
        "a pod of another entry is away",
        {CAS_READY.replace('"nativelink"', '"other"'): "0x10"},
        5,
    ),
    Case(
        "NativeLinkCASDiskFull",
        "4 % are left",
        {
            f"kubelet_volume_stats_available_bytes{VOLUME}": "8x10",
            f"kubelet_volume_stats_capacity_bytes{VOLUME}": "200x10",
        },
        6,
        {"data-nativelink-cas-2 has 4% of its bytes left": {"persistentvolumeclaim": "data-nativelink-cas-2"}},
    ),
    Case(
        "NativeLinkCASDiskFull",
        "a store that is as full as it may be",
        {
            f"kubelet_volume_stats_available_bytes{VOLUME}": "20x10",
            f"kubelet_volume_stats_capacity_bytes{VOLUME}": "200x10",
        },
        6,
    ),
    Case(
        "NativeLinkCASInodesFull",
        "1 % is left",
        {f"kubelet_volume_stats_inodes_free{VOLUME}": "10x10", f"kubelet_volume_stats_inodes{VOLUME}": "1000x10"},
        6,
        {"data-nativelink-cas-2 has 1% of its inodes left": {"persistentvolumeclaim": "data-nativelink-cas-2"}},
    ),
    Case(
        "NativeLinkCASInodesFull",
        "a file system that does not count inodes",
        {f"kubelet_volume_stats_inodes_free{VOLUME}": "0x10", f"kubelet_volume_stats_inodes{VOLUME}": "0x10"},
        6,
    ),
    Case(
        "NativeLinkUploadsRefused",
        "the first one, with which the series begins",
        {writes("0"): "9x30", writes("3"): "_x14 1x10"},
        16,
        {"CAS pod nativelink-cas-0 has refused an upload": {"pod": "nativelink-cas-0"}},
    ),
    Case(
        "NativeLinkUploadsRefused",
        "one more",
        {writes("0"): "9x30", writes("3"): "4x14 5x10"},
        16,
        {"CAS pod nativelink-cas-0 has refused an upload": {"pod": "nativelink-cas-0"}},
    ),
    Case("NativeLinkUploadsRefused", "one that is long ago", {writes("0"): "9x40", writes("3"): "_x14 1x20"}, 30),
    Case(
        "NativeLinkUploadsRefused",
        "a Prometheus that has just started",
        {writes("0"): "9x5", writes("3"): "4x5"},
        4,
    ),
    Case(
        "NativeLinkUploadErrors",
        "a volume without the folder for new files",
        {writes("0"): "0+30x10", writes("5"): "0+10x10"},
        8,
        {"25% of the uploads to CAS pod nativelink-cas-0 fail": {"pod": "nativelink-cas-0"}},
    ),
    Case(
        "NativeLinkUploadErrors",
        "clients that send wrong bytes or hang up",
        {writes("0"): "0+30x10", writes("3"): "0+10x10", writes("1"): "0+10x10"},
        8,
    ),
    Case("NativeLinkUploadErrors", "few errors", {writes("0"): "0+100x10", writes("5"): "0+1x10"}, 8),
    Case(
        "NativeLinkCacheHitRateCollapsed",
        "from 80 % to 10 %",
        {lookups("hit"): "0+8x240 1921+1x60", lookups("miss"): "0+2x240 489+9x60"},
        300,
        {"The action cache answers 10% of the lookups of NativeLink in nativelink": {}},
    ),
    Case(
        "NativeLinkCacheHitRateCollapsed",
        "80 % as always",
        {lookups("hit"): "0+8x300", lookups("miss"): "0+2x300"},
        300,
    ),
    Case(
        "NativeLinkCacheHitRateCollapsed",
        "a few lookups at night",
        {lookups("hit"): "0+8x240 1920x60", lookups("miss"): "0+2x240 481+1x60"},
        300,
    ),
    Case(
        "NativeLinkSchedulerDown",
        "no pod is available",
        {AVAILABLE: "1 0x10"},
        4,
        {
            "Deployment nativelink-scheduler has no available scheduler": {"deployment": "nativelink-scheduler"},
        },
    ),
    Case("NativeLinkSchedulerDown", "one of two pods is available", {AVAILABLE: "2 1x10"}, 4),
    Case(
        "NativeLinkSchedulerNotMatching",
        "in memory",
        {stage("queued"): "0 5x20", stage("executing"): "0x21"},
        12,
        {"5 actions are queued in nativelink, and none runs": {}},
        backend="memory",
    ),
    Case(
        "NativeLinkSchedulerNotMatching",
        "in memory, some actions run",
        {stage("queued"): "0 5x20", stage("executing"): "0 1x20"},
        12,
        backend="memory",
    ),
    Case(
        "NativeLinkSchedulerNotMatching",
        "on Redis",
        {script("default:queued"): "7x20", script("default:executing"): "0x20"},
        12,
        {"7 actions are queued for pool default, and none runs": {"pool": "default"}},
    ),
    Case(
        "NativeLinkSchedulerNotMatching",
        "on Redis, actions that no pool can run",
        {
            script("(unmatched):queued"): "7x20",
            script("default:queued"): "0x20",
            script("default:executing"): "0x20",
        },
        12,
    ),
    Case(
        "NativeLinkSchedulerLoopDead",
        "one of two schedulers is dead from the start",
        {
            SERVED: "1x20",
            SERVED.replace("scheduler-a", "scheduler-b"): "1x20",
            scheduler("scheduler_matching_passes_total", "nativelink-scheduler-b"): "0+60x20",
        },
        5,
        {
            "Scheduler nativelink-scheduler-a does not match actions with workers any more": {
                "pod": "nativelink-scheduler-a"
            }
        },
    ),
    Case(
        "NativeLinkSchedulerLoopDead",
        "the loop ends",
        {SERVED: "1x20", scheduler("scheduler_matching_passes_total"): "0+60x5 300x15"},
        12,
        {
            "Scheduler nativelink-scheduler-a does not match actions with workers any more": {
                "pod": "nativelink-scheduler-a"
            }
        },
    ),
    Case(
        "NativeLinkSchedulerLoopDead",
        "an idle scheduler",
        {SERVED: "1x20", scheduler("scheduler_matching_passes_total"): "0+60x20"},
        12,
    ),
    Case(
        "NativeLinkActionsUnmatched",
        "three wait",
        {script("(unmatched):queued"): "3x20"},
        6,
        {"No pool can run 3 queued actions of NativeLink in nativelink": {}},
    ),
    Case(
        "NativeLinkActionsUnmatched",
        "all can run somewhere",
        {script("(unmatched):queued"): "0x20", script("default:queued"): "9x20"},
        6,
    ),
    Case(
        "NativeLinkWorkersGivenUp",
        "two workers are killed, and their pods stay",
        {SERVED: "1x40", EVICTED: "_x20 2x10", worker("info"): "1x40"},
        25,
        {"The scheduler has given up 2 workers of nativelink-workers": {}},
    ),
    Case(
        "NativeLinkWorkersGivenUp",
        "a pool shrinks by two",
        {
            SERVED: "1x40",
            EVICTED: "6x20 8x10",
            worker("info"): "1x40",
            worker("info", pod="nativelink-worker-default-b45d476b8-2aaaa"): "1x21 stale",
            worker("info", pod="nativelink-worker-default-b45d476b8-3bbbb"): "1x21 stale",
        },
        25,
    ),
    Case(
        "NativeLinkPoolAtMaximum",
        "in memory",
        {
            autoscaler("status_current"): "50x30",
            autoscaler("spec_max"): "50x30",
            stage("queued"): "9x30",
        },
        16,
        {"All 50 workers of pool default run, and actions wait": {"pool": "default"}},
        backend="memory",
    ),
    Case(
        "NativeLinkPoolAtMaximum",
        "on Redis",
        {
            autoscaler("status_current"): "50x30",
            autoscaler("spec_max"): "50x30",
            script("default:queued"): "9x30",
        },
        16,
        {"All 50 workers of pool default run, and actions wait": {"pool": "default"}},
    ),
    Case(
        "NativeLinkPoolAtMaximum",
        "at its maximum, but nothing waits",
        {
            autoscaler("status_current"): "50x30",
            autoscaler("spec_max"): "50x30",
            script("default:queued"): "0x30",
        },
        16,
    ),
    Case(
        "NativeLinkPoolAtMaximum",
        "a queue, but below its maximum",
        {
            autoscaler("status_current"): "49x30",
            autoscaler("spec_max"): "50x30",
            stage("queued"): "9x30",
        },
        16,
        backend="memory",
    ),
    Case(
        "NativeLinkWorkersPending",
        "no node for a worker",
        {worker("status_phase", 'phase="Pending"'): "1x20"},
        12,
        {"1 workers of pool default have been pending for 10 minutes": {"pool": "default"}},
    ),
    Case(
        "NativeLinkWorkersPending",
        "one worker after another waits for its node",
        {
            worker("status_phase", 'phase="Pending"'): "1x7 0x20",
            worker("status_phase", 'phase="Pending"', "nativelink-worker-default-b45d476b8-2aaaa"): "_x6 1x7 0x10",
        },
        12,
    ),
    Case(
        "NativeLinkWorkerOutOfMemory",
        "a worker is killed and starts again",
        {
            worker("container_status_restarts_total", 'container="worker"'): "0x5 1x10",
            worker("container_status_last_terminated_reason", 'container="worker",reason="OOMKilled"'): "_x5 1x10",
        },
        7,
        {f"Worker {WORKER} was killed because it ran out of memory": {"pool": "default", "pod": WORKER}},
    ),
    Case(
        "NativeLinkWorkerOutOfMemory",
        "a worker ends by itself",
        {
            worker("container_status_restarts_total", 'container="worker"'): "0x5 1x10",
            worker("container_status_last_terminated_reason", 'container="worker",reason="Error"'): "_x5 1x10",
        },
        7,
    ),
    Case(
        "NativeLinkWorkerOutOfMemory",
        "it was half an hour ago",
        {
            worker("container_status_restarts_total", 'container="worker"'): "0x5 1x40",
            worker("container_status_last_terminated_reason", 'container="worker",reason="OOMKilled"'): "_x5 1x40",
        },
        36,
    ),
    Case(
        "NativeLinkWorkerEvicted",
        "just now",
        {worker("status_reason", 'reason="Evicted"'): "1x50", worker("completion_time"): "60x50"},
        5,
        {f"The kubelet has evicted worker {WORKER}": {"pool": "default", "pod": WORKER}},
    ),
    Case(
        "NativeLinkWorkerEvicted",
        "40 minutes ago, and the pod was left",
        {worker("status_reason", 'reason="Evicted"'): "1x50", worker("completion_time"): "60x50"},
        41,
    ),
    Case(
        "NativeLinkDrainStuck",
        "four minutes after the end of the grace",
        {worker("deletion_timestamp"): "120x20"},
        6,
        {
            f"Worker {WORKER} is still there 4m 0s after its drain had to end": {"pool": "default", "pod": WORKER},
        },
    ),
    Case("NativeLinkDrainStuck", "a drain within its grace", {worker("deletion_timestamp"): "4500x20"}, 20),
    Case(
        "NativeLinkRedisDown",
        "it does not answer the exporter",
        {redis("up"): "1 0x10"},
        3,
        {"The Redis of NativeLink in nativelink does not answer": {}},
    ),
    Case(
        "NativeLinkRedisDown",
        "the exporter runs, and answers too late",
        {DEMAND_UP: "1 0x10", EXPORTER: "1x10"},
        3,
        {"The Redis of NativeLink in nativelink does not answer": {}},
    ),
    Case("NativeLinkRedisDown", "it answers", {redis("up"): "1x10", DEMAND_UP: "1x10", EXPORTER: "1x10"}, 3),
    Case("NativeLinkRedisDown", "the exporter is away", {DEMAND_UP: "0x10", EXPORTER: "0x10"}, 3),
    Case(
        "NativeLinkRedisFull",
        "95 %",
        {redis("memory_used_bytes"): "95x10", redis("memory_max_bytes"): "100x10"},
        6,
        {"The Redis of NativeLink in nativelink has filled 95% of its memory": {}},
    ),
    Case(
        "NativeLinkRedisFull",
        "a Redis without a limit",
        {redis("memory_used_bytes"): "95x10", redis("memory_max_bytes"): "0x10"},
        6,
    ),
    Case(
        "NativeLinkDemandLost",
        "in memory",
        {stage("queued"): "0 stale", stage("executing"): "0 stale"},
        4,
        {"The demand of NativeLink in nativelink is not known": {}},
        backend="memory",
    ),
    Case(
        "NativeLinkDemandLost",
        "on Redis",
        {script("default:queued"): "0 stale", redis("up"): "0x10"},
        4,
        {"The demand of NativeLink in nativelink is not known": {}},
    ),
    Case("NativeLinkDemandLost", "no demand at all", {stage("queued"): "0x10"}, 4, backend="memory"),
    Case(
        "NativeLinkDemandLost",
        "a scheduler that restarts",
        {stage("queued"): "4 stale _ 4x10"},
        4,
        backend="memory",
    ),
    Case(
        "NativeLinkKEDAFallback",
        "the source does not answer",
        {polls("200"): "60x10", polls("error"): "0+20x10"},
        8,
        {
            "100% of KEDA's requests for the demand of pool default fail": {
                "pool": "default",
                "scaled_resource": "nativelink-worker-default",
            }
        },
    ),
    Case(
        "NativeLinkKEDAFallback",
        "single errors",
        {polls("200"): "0+29x10", polls("error"): "0+1x10"},
        8,
    ),
    Case(
        "NativeLinkEdgeErrors",
        "a fifth of the requests",
        {answers(2): "0+40x10", answers(5): "0+10x10", answers(2, "cache"): "0+50x10"},
        8,
        {"20% of the requests of nativelink-execution fail at the edge": {"route": "nativelink-execution"}},
    ),
    Case(
        "NativeLinkEdgeErrors",
        "one in a hundred, and errors of another entry",
        {
            answers(2): "0+99x10",
            answers(5): "0+1x10",
            answers(5).replace("/nativelink/", "/other/"): "0+99x10",
        },
        8,
    ),
    Case(
        "NativeLinkEdgeGivesUp",
        "the retries of a request are used up",
        {
            envoy(f"upstream_{name}"): "0x5 1x10" if name == "rq_retry_limit_exceeded" else "0x20"
            for name in (
                "rq_pending_overflow",
                "rq_retry_overflow",
                "rq_retry_limit_exceeded",
                "rq_timeout",
                "cx_overflow",
                "cx_none_healthy",
            )
        },
        8,
        {
            "The edge gives up requests of nativelink-execution of NativeLink in nativelink": {
                "route": "nativelink-execution"
            }
        },
    ),
    Case(
        "NativeLinkEdgeGivesUp",
        "a route without endpoints",
        {DIRECT: "0x5 1x10"},
        8,
        {"The edge gives up requests of NativeLink in nativelink": {}},
    ),
    Case(
        "NativeLinkEdgeGivesUp",
        "retries that succeed",
        {
            **{
                envoy(f"upstream_{name}"): "0x20"
                for name in (
                    "rq_pending_overflow",
                    "rq_retry_overflow",
                    "rq_retry_limit_exceeded",
                    "rq_timeout",
                    "cx_overflow",
                    "cx_none_healthy",
                )
            },
            envoy("upstream_rq_retry"): "0+5x20",
            DIRECT: "0x20",
        },
        8,
    ),
    Case(
        "NativeLinkCertificateExpiry",
        "ten days",
        {LISTENER: f"{10 * 86400}x80"},
        70,
        {
            "The certificate nativelink/edge-tls of the edge expires in 9d 22h 50m 0s": {
                "envoy_tls_certificate": "nativelink/edge-tls"
            }
        },
    ),
    Case("NativeLinkCertificateExpiry", "two months", {LISTENER: f"{60 * 86400}x80"}, 70),
    Case(
        "NativeLinkMutualTLSExpiry",
        "30 days before, and an hour",
        {},
        1502,
        {"The certificates of the workers in nativelink-workers end on 1970-02-01": {}},
    ),
    Case("NativeLinkMutualTLSExpiry", "30 days before, and 50 minutes", {}, 1490),
    Case(
        "NativeLinkGitOpsOutOfSync",
        "Argo CD",
        {application("OutOfSync"): "1x20"},
        16,
        {"Argo CD's Application nativelink-test is out of sync": {"name": "nativelink-test"}},
    ),
    Case(
        "NativeLinkGitOpsOutOfSync",
        "Argo CD syncs a commit",
        {application("OutOfSync"): "1x3 stale", application("Synced"): "_x4 1x20"},
        16,
    ),
    Case(
        "NativeLinkGitOpsOutOfSync",
        "a suspended Kustomization of Flux",
        {RECONCILED: "0+1x10 10x20"},
        27,
        {"Flux's Kustomization nativelink-test is not reconciled": {"name": "nativelink-test"}},
        backend="memory",
    ),
    Case("NativeLinkGitOpsOutOfSync", "Flux", {RECONCILED: "0+1x30"}, 27, backend="memory"),
    Case(
        "NativeLinkGitOpsFailing",
        "Argo CD cannot apply",
        {application("OutOfSync", phase="Failed"): "1x20"},
        6,
        {"Argo CD's Application nativelink-test fails": {"name": "nativelink-test"}},
    ),
    Case(
        "NativeLinkGitOpsFailing",
        "Argo CD cannot read the commit",
        {application("Unknown"): "1x20"},
        6,
        {"Argo CD's Application nativelink-test fails": {"name": "nativelink-test"}},
    ),
    Case(
        "NativeLinkGitOpsFailing",
        "what Argo CD has applied is not healthy",
        {application("Synced", health="Degraded"): "1x20"},
        6,
        {"Argo CD's Application nativelink-test fails": {"name": "nativelink-test"}},
    ),
    Case(
        "NativeLinkGitOpsFailing",
        "a commit that was reverted after its sync failed",
        {application("Synced", phase="Failed"): "1x20"},
        6,
    ),
    Case(
        "NativeLinkGitOpsFailing",
        "Flux",
        {flux("Kustomization", "False"): "1x20", flux("GitRepository", "True"): "1x20"},
        6,
        {
            "Flux's Kustomization nativelink-test fails": {
                "name": "nativelink-test",
                "customresource_kind": "Kustomization",
            }
        },
        backend="memory",
    ),
    Case("NativeLinkGitOpsFailing", "Flux waits", {flux("Kustomization", "Unknown"): "1x20"}, 6, backend="memory"),
    Case(
        "NativeLinkMetricsLost",
        "no metrics of the CAS",
        {name: values for name, values in SOURCES.items() if 'component="cas"' not in name},
        6,
        {"No metrics of cas arrive for NativeLink in nativelink": {"source": "cas"}},
        backend="memory",
    ),
    Case(
        "NativeLinkMetricsLost",
        "none of kube-state-metrics and of KEDA",
        {name: values for name, values in SOURCES.items() if not name.startswith(("kube_pod_info", "keda"))},
        6,
        {
            "No metrics of kube-state-metrics arrive for NativeLink in nativelink": {"source": "kube-state-metrics"},
            "No metrics of keda arrive for NativeLink in nativelink": {"source": "keda"},
        },
        backend="memory",
    ),
    Case("NativeLinkMetricsLost", "all arrive", SOURCES, 6, backend="memory"),
)

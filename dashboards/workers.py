"""The workers: their pods, what they use, and how they end."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.panels import (
    OURS,
    POOLS,
    READY,
    WORKER_PODS,
    board,
    by_pool,
    graph,
    mean,
    number,
    or_zero,
    per_second,
    quantile,
    row,
)

_PHASES = f"kube_pod_status_phase{{{WORKER_PODS}}}"
_GOING = f"kube_pod_deletion_timestamp{{{WORKER_PODS}}}"
_MEMORY = f'container_memory_working_set_bytes{{{WORKER_PODS},container="worker"}}'
_CPU = f'rate(container_cpu_usage_seconds_total{{{WORKER_PODS},container="worker"}}[$__rate_interval])'
_LEFT = f"nativelink_worker_disconnections_total{{{OURS}}}"
_LAST = f"kube_pod_container_status_last_terminated_reason{{{WORKER_PODS}"


def _of_limit(usage: str, resource: str) -> str:
    """Return a query of what each pod uses, of its limit or else its request, with the label pool."""
    kinds = ("limits", "requests")
    known = " or ".join(
        f'kube_pod_container_resource_{kind}{{{WORKER_PODS},container="worker",resource="{resource}"}}'
        for kind in kinds
    )
    return by_pool(f"sum by (pod) ({usage}) / max by (pod) ({known})", "pod")


def made() -> Dashboard:
    """Return the dashboard."""
    return board(
        "workers",
        "Workers",
        "Do the workers run, do they have room, and do they end as they should?",
        row("Pods"),
        number(
            "Pods that drain now",
            "short",
            "Pods that Kubernetes has asked to end. They finish their actions first. Normal: 0 to a few while a pool "
            "shrinks.",
            (f"count({_GOING}) or vector(0)", "drain"),
        ),
        number(
            "Longest drain now",
            "s",
            "Normal: below longest_action of the pool. Longer: runbook NativeLinkDrainStuck.",
            (f"max(time() - {_GOING}) or vector(0)", "drains"),
        ),
        number(
            "Ended for want of memory",
            "short",
            "Workers whose container was last ended by the kernel. Normal: 0. Otherwise: runbook "
            "NativeLinkWorkerOutOfMemory.",
            (or_zero(f'sum({_LAST},reason="OOMKilled"}})'), "ended"),
            fail=1,
        ),
        number(
            "Evicted",
            "short",
            "Workers that a node evicted, mostly because its disk or memory ran out. Normal: 0. Otherwise: runbook "
            "NativeLinkWorkerEvicted.",
            (or_zero(f'sum(kube_pod_status_reason{{{WORKER_PODS},reason="Evicted"}})'), "evicted"),
            fail=1,
        ),
        number(
            "Restarts in an hour",
            "short",
            "Containers of workers that started again in their pod. Normal: 0. Otherwise read the log of the container "
            "that ended: kubectl logs --previous.",
            (
                or_zero(
                    f'sum(increase(kube_pod_container_status_restarts_total{{{WORKER_PODS},container="worker"}}[1h]))'
                ),
                "restarts",
            ),
            fail=1,
        ),
        number(
            "Wait for a node",
            "short",
            "Pods that no node has room for. Normal: 0 after the time that a new node takes. Otherwise: runbook "
            "NativeLinkWorkersPending.",
            (or_zero(f'sum(kube_pod_status_phase{{{WORKER_PODS},phase="Pending"}})'), "wait"),
            warn=1,
        ),
        graph(
            "Pods by phase",
            "short",
            "Normal: Running; Pending only while a pool grows. Failed: runbook NativeLinkWorkerEvicted.",
            (f"sum by (phase) ({_PHASES}) > 0", "{{phase}}"),
            stacked=True,
        ),
        graph(
            "Ready, by pool",
            "short",
            "Normal: between min_replicas and max_replicas, and it follows the demand.",
            (READY, "{{pool}}"),
            stacked=True,
        ),
        graph(
            "Drains",
            "short",
            "Pods that finish their actions before they end. Normal: steps down within longest_action. Otherwise: "
            "runbook NativeLinkDrainStuck.",
            (or_zero(f"count by (pool) ({by_pool(_GOING, 'pod')})"), "drain {{pool}}"),
        ),
        graph(
            "Workers that joined and left",
            "short",
            "As the scheduler saw them, in 5 minutes. A drain ends with an eviction too, so normal is: as many evicted "
            "as pods have ended. More: the scheduler gave workers up (runbook NativeLinkWorkersGivenUp).",
            (f"sum(increase(nativelink_worker_connections_total{{{OURS}}}[5m]))", "joined"),
            (
                or_zero(f"sum by (worker_disconnect_reason) (increase({_LEFT}[5m]))"),
                "{{worker_disconnect_reason}}",
            ),
        ),
        graph(
            "Workers of the scheduler, by state",
            "short",
            "connected are all; paused take no action for the moment; draining are asked to end by NativeLink's own "
            "API. Normal: none paused for long.",
            (f"sum(nativelink_worker_connected_count{{{OURS}}})", "connected"),
            (or_zero(f"sum by (worker_state) (nativelink_worker_state_count{{{OURS}}})"), "{{worker_state}}"),
        ),
        graph(
            "Signs of life a second",
            "ops",
            "Normal: steady, and it grows with the number of workers. A dip: the network or the scheduler hung; soon "
            "workers are given up.",
            (per_second("nativelink_worker_keepalives_total", OURS), "keepalives"),
        ),
        row("What they use"),
        graph(
            "Memory, of the limit",
            "percentunit",
            "The fullest worker of each pool. Normal: below 0.9. Above: fewer slots or more memory, or the kernel ends "
            "it (runbook NativeLinkWorkerOutOfMemory).",
            (
                f"max by (pool) ({_of_limit(_MEMORY, 'memory')})",
                "{{pool}}",
            ),
            top=1,
        ),
        graph(
            "CPU, of the limit",
            "percentunit",
            "The mean of each pool. Normal: near 1 while it works. Low with all slots in use: the actions wait for "
            "disk or network, so more slots may help.",
            (f"avg by (pool) ({_of_limit(_CPU, 'cpu')})", "{{pool}}"),
            top=1,
        ),
        graph(
            "Memory of one action",
            "bytes",
            "Its peak, as the worker saw it. Times the slots, it must fit into the memory of a worker.",
            (quantile(0.5, "nativelink_execution_peak_memory_bytes", OURS), "half below"),
            (quantile(0.95, "nativelink_execution_peak_memory_bytes", OURS), "95 % below"),
        ),
        graph(
            "Stages of an action",
            "s",
            "Mean times. Normal: execution is the largest part. input_fetch: the worker's store is cold, or the CAS "
            "slow. output_upload: the CAS is slow.",
            (mean("nativelink_execution_stage_duration_seconds", OURS, "execution_stage"), "{{execution_stage}}"),
            stacked=True,
        ),
        graph(
            "Inputs from the worker's own store and from the CAS",
            "Bps",
            "fast is the worker's disk, slow the CAS. Normal: mostly fast, after the first builds of a new worker.",
            (
                per_second(
                    "nativelink_store_tier_io_bytes_total",
                    f'{OURS},component="worker",store_direction="read"',
                    "store_tier",
                ),
                "{{store_tier}}",
            ),
            stacked=True,
        ),
        graph(
            "Size of the outputs",
            "bytes",
            "Of one action. Normal: what it was on the days before.",
            (quantile(0.5, "nativelink_execution_output_size_bytes", OURS), "half below"),
            (quantile(0.95, "nativelink_execution_output_size_bytes", OURS), "95 % below"),
        ),
        needs=POOLS,
    )

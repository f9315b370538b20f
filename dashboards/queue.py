"""The queue, and the pools that work on it."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.panels import (
    AUTOSCALERS,
    DEMAND,
    DEMAND_BY_POOL,
    OURS,
    POOLS,
    READY,
    SHARED,
    SLOTS,
    UTILISATION,
    WORKERS,
    board,
    by_pool,
    graph,
    listing,
    mean,
    number,
    or_zero,
    per_second,
    quantile,
    row,
)

_SCALED = f'{SHARED},namespace="$workers_namespace",scaledObject=~"nativelink-worker-($pool)"'


def _autoscaler(name: str) -> str:
    series = by_pool(f"kube_horizontalpodautoscaler_{name}{{{AUTOSCALERS}}}", "horizontalpodautoscaler")
    return f"max by (pool) ({series})"


def made() -> Dashboard:
    """Return the dashboard."""
    completed = "nativelink_execution_completed_count_total"
    return board(
        "queue",
        "Queue and pools",
        "Does every action find a worker, and do the pools follow the demand?",
        row("Queue"),
        graph(
            "Actions",
            "short",
            "Normal: queued goes back to 0 within minutes. Queued with nothing executing: runbook "
            "NativeLinkSchedulerNotMatching.",
            (DEMAND, "{{execution_stage}}"),
            stacked=True,
        ),
        graph(
            "Demand by pool",
            "short",
            "Queued and executing actions, which scaling follows. A scheduler in memory does not tell the pools apart. "
            "(unmatched) is what no pool can run: runbook NativeLinkActionsUnmatched.",
            (DEMAND_BY_POOL, "demand {{pool}}"),
            stacked=True,
        ),
        graph(
            "Time in the queue",
            "s",
            "Normal: below the time that a new worker takes to start. More at a pool's maximum: raise max_replicas.",
            (quantile(0.5, "nativelink_execution_queue_time_seconds", OURS), "half below"),
            (quantile(0.95, "nativelink_execution_queue_time_seconds", OURS), "95 % below"),
            (quantile(0.99, "nativelink_execution_queue_time_seconds", OURS), "99 % below"),
        ),
        graph(
            "Completed actions a second",
            "ops",
            "Normal: mostly success. Other results in all builds at once: read the log of the scheduler.",
            (per_second(completed, OURS, "execution_result"), "{{execution_result}}"),
            stacked=True,
        ),
        graph(
            "Retries of actions",
            "short",
            "Actions that the scheduler had to give away again, in 5 minutes. A worker that drains refuses what it is "
            "offered, and each refusal counts: thousands while a pool shrinks are normal. Many without a drain: "
            "workers end while they run actions; look at the dashboard Workers.",
            (or_zero(f"sum(increase(nativelink_execution_retry_count_total{{{OURS}}}[5m]))"), "retries"),
        ),
        graph(
            "Time from submission to completion",
            "s",
            "Normal: the time in the queue, plus what the actions of your builds take.",
            (quantile(0.5, "nativelink_execution_total_duration_seconds", OURS), "half below"),
            (quantile(0.95, "nativelink_execution_total_duration_seconds", OURS), "95 % below"),
        ),
        row("Pools"),
        listing(
            "Pools now",
            "short",
            "Desired at the maximum with a queue: raise max_replicas (runbook NativeLinkPoolAtMaximum). Ready below "
            "desired for minutes: runbook NativeLinkWorkersPending.",
            (_autoscaler("spec_min_replicas"), "minimum"),
            (READY, "ready"),
            (_autoscaler("status_desired_replicas"), "desired"),
            (_autoscaler("spec_max_replicas"), "maximum"),
            (SLOTS, "actions a worker"),
        ),
        graph(
            "Workers, ready and desired",
            "short",
            "Normal: ready follows desired within a minute, or when a node is there. Otherwise: runbook "
            "NativeLinkWorkersPending.",
            (READY, "ready {{pool}}"),
            (_autoscaler("status_desired_replicas"), "desired {{pool}}"),
        ),
        graph(
            "Room up to the maximum",
            "short",
            "Workers that a pool may still add. 0 with a queue: raise max_replicas (runbook NativeLinkPoolAtMaximum).",
            (
                f"{_autoscaler('spec_max_replicas')} - {_autoscaler('status_desired_replicas')}",
                "{{pool}}",
            ),
        ),
        graph(
            "Slots in use",
            "percentunit",
            "Executing actions, of what the running workers can take at once. Normal: above 0.7 during builds.",
            (UTILISATION, "in use"),
            top=1,
        ),
        graph(
            "Workers that are not ready",
            "short",
            "Pods that a pool wants and does not have. Normal: 0 after a minute. Otherwise: runbook "
            "NativeLinkWorkersPending.",
            (
                f"sum by (pool) ({by_pool(f'kube_deployment_status_replicas_unavailable{{{WORKERS}}}', 'deployment')})",
                "{{pool}}",
            ),
        ),
        row("What moves them"),
        number(
            "Scheduler's workers",
            "short",
            "Normal: as many as are ready. Fewer: they cannot reach port 50061 of the scheduler.",
            (f"sum(nativelink_worker_connected_count{{{OURS}}})", "connected"),
        ),
        number(
            "KEDA's failed queries",
            "short",
            "In 5 minutes. Normal: 0. Otherwise KEDA holds the pools at their size: runbook NativeLinkKEDAFallback.",
            (
                or_zero(
                    f'sum(increase(keda_scaler_http_requests_total{{{SHARED},status_code="error",'
                    f'scaled_resource=~"nativelink-worker-($pool)"}}[5m]))'
                ),
                "failed",
            ),
            fail=1,
        ),
        graph(
            "Demand as KEDA reads it",
            "short",
            "Normal: the demand above, a few seconds later. While the source is lost it is the fallback's value.",
            (f"max by (scaledObject) (keda_scaler_metrics_value{{{_SCALED}}})", "{{scaledObject}}"),
        ),
        graph(
            "Time of KEDA's query",
            "s",
            "Normal: milliseconds. 3 s is a timeout: runbook NativeLinkDemandLost.",
            (f"max by (scaledObject) (keda_scaler_metrics_latency_seconds{{{_SCALED}}})", "{{scaledObject}}"),
        ),
        graph(
            "Passes of matching",
            "ops",
            "How often the scheduler compared queue and workers. 0 with a queue: runbook "
            "NativeLinkSchedulerNotMatching, on Redis NativeLinkSchedulerLoopDead.",
            (
                per_second("nativelink_scheduler_matching_passes_total", OURS, "scheduler_match_result"),
                "{{scheduler_match_result}}",
            ),
        ),
        graph(
            "Time of a pass",
            "s",
            "Normal: milliseconds. Seconds: the queue is very long, or Redis is slow.",
            (mean("nativelink_scheduler_matching_duration_seconds", OURS), "mean"),
            (quantile(0.95, "nativelink_scheduler_matching_duration_seconds", OURS), "95 % below"),
        ),
        needs=POOLS,
    )

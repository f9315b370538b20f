"""The overview: whether the farm is healthy and fast, and what it costs."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.panels import (
    CAS_CLAIMS,
    CAS_PODS,
    DEMAND,
    HITS,
    OURS,
    RUNNING,
    SHARED,
    SLOTS,
    UTILISATION,
    board,
    graph,
    hit_rate,
    listing,
    mean,
    number,
    or_zero,
    per_second,
    quantile,
    row,
    share,
    text_variable,
)

_FIRING = f'ALERTS{{{SHARED},alertname=~"NativeLink.+",alertstate="firing"}}'
_COMPLETED = "nativelink_execution_completed_count_total"
_OTHERS = f'{SHARED},namespace="$namespace"'
# In the range of the dashboard. A subquery counts a pool also for the time in which it had no pod.
_HOURS = f"sum_over_time(({RUNNING})[$__range:1m]) / 60"
_EXECUTION = f'{OURS},execution_stage="execution"'
_SECONDS = (
    f"sum(increase(nativelink_execution_stage_duration_seconds_sum{{{_EXECUTION}}}[$__range]))"
    f" / sum(increase(nativelink_execution_stage_duration_seconds_count{{{_EXECUTION}}}[$__range]))"
)
_SAVED = f"sum(increase({HITS}[$__range])) * ({_SECONDS}) / 3600 / avg({SLOTS})"


def made() -> Dashboard:
    """Return the dashboard."""
    return board(
        "overview",
        "Overview",
        "Is the farm healthy, is it fast, and what does it cost? Start here, and follow the links at the top.",
        row("Is it healthy?"),
        number(
            "Alerts that fire",
            "short",
            "Normal: 0. Otherwise the table below names them, and links to what to do.",
            (f"count({_FIRING}) or vector(0)", "alerts"),
            fail=1,
        ),
        number(
            "CAS pods that are away",
            "short",
            "Normal: 0. While a pod of the CAS is away, builds that need its part of the content fail: runbook "
            "NativeLinkCASPodDown.",
            (
                f'sum(kube_statefulset_replicas{{{_OTHERS},statefulset="nativelink-cas"}}'
                f' - kube_statefulset_status_replicas_ready{{{_OTHERS},statefulset="nativelink-cas"}})',
                "away",
            ),
            fail=1,
        ),
        number(
            "Schedulers that are ready",
            "short",
            "Normal: 1 in memory, nativelink_scheduler_replicas on Redis. At 0 every build fails: runbook "
            "NativeLinkSchedulerDown.",
            (f'sum(kube_deployment_status_replicas_ready{{{_OTHERS},deployment="nativelink-scheduler"}})', "ready"),
            warn=1,
            fail=0.5,
        ),
        number(
            "Workers that are connected",
            "short",
            "Normal: as many as the pools have ready pods. Fewer: look at the dashboard Workers.",
            (f"sum(nativelink_worker_connected_count{{{OURS}}})", "connected"),
        ),
        number(
            "Actions that failed",
            "percentunit",
            "Part of the completed actions that did not succeed, over the range. Tests and compilers that fail count, "
            "so compare it with the days before. A jump in all builds at once is the farm's fault: look at the "
            "dashboard Queue.",
            (
                or_zero(
                    f'sum(increase({_COMPLETED}{{{OURS},execution_result!="success"}}[$__range]))'
                    f" / sum(increase({_COMPLETED}{{{OURS}}}[$__range]))"
                ),
                "failed",
            ),
            warn=0.1,
            fail=0.3,
        ),
        number(
            "Fullest volume of the CAS",
            "percentunit",
            "Normal: below the part of the volume that nativelink_cas_store_size and nativelink_cas_ac_store_size give "
            "to the stores. Near 1 uploads fail: runbook NativeLinkCASDiskFull.",
            (
                f"max(kubelet_volume_stats_used_bytes{{{CAS_CLAIMS}}}"
                f" / kubelet_volume_stats_capacity_bytes{{{CAS_CLAIMS}}})",
                "used",
            ),
            warn=0.95,
            fail=0.98,
        ),
        listing(
            "Firing alerts",
            "short",
            "Normal: empty. A click on the name opens the runbook.",
            (f"count by (alertname, severity) ({_FIRING})", "objects"),
            links={"alertname": "${runbooks}/${__value.raw}.md"},
        ),
        row("Is it fast?"),
        graph(
            "Actions",
            "short",
            "Normal: executing follows what the builds ask for, and queued goes back to 0 within minutes. A queue that "
            "stays: look at the dashboard Queue.",
            (DEMAND, "{{execution_stage}}"),
            stacked=True,
        ),
        graph(
            "Time in the queue",
            "s",
            "Normal: below the time that a new worker takes to start. More: the pools are at their maximum, or their "
            "nodes come slowly.",
            (quantile(0.5, "nativelink_execution_queue_time_seconds", OURS), "half below"),
            (quantile(0.95, "nativelink_execution_queue_time_seconds", OURS), "95 % below"),
        ),
        graph(
            "Mean time of an action, by stage",
            "s",
            "Normal: execution is the largest part. A large input_fetch or output_upload: look at the dashboard Cache.",
            (mean("nativelink_execution_stage_duration_seconds", OURS, "execution_stage"), "{{execution_stage}}"),
            stacked=True,
        ),
        graph(
            "Hit rate of the action cache",
            "percentunit",
            "Part of the lookups of results that found one. Normal: what it was on the days before; after a change of "
            "compiler or flags it falls once. It stays low: runbook NativeLinkCacheHitRateCollapsed.",
            (hit_rate("ac"), "clients"),
            (hit_rate("ac_lookup"), "scheduler, before it queues"),
            top=1,
        ),
        graph(
            "Calls of clients, 95 % below",
            "s",
            "Time of a call at the CAS and the scheduler. Execute is missing, because it lasts as long as its action. "
            "Normal: below 100 ms without large files. More: look at the dashboard Cache.",
            (
                quantile(
                    0.95,
                    "nativelink_rpc_server_duration_seconds",
                    f'{OURS},rpc_service=~"build.bazel.+|google.bytestream.+",rpc_method!~"Execute|WaitExecution"',
                    "rpc_method",
                ),
                "{{rpc_method}}",
            ),
        ),
        graph(
            "Completed actions a second",
            "ops",
            "Normal: follows the builds. 0 with a queue: runbook NativeLinkSchedulerNotMatching.",
            (per_second(_COMPLETED, OURS, "execution_result"), "{{execution_result}}"),
            stacked=True,
        ),
        row("What does it cost?"),
        number(
            "Worker-hours in the range",
            "short",
            "Time in which pods of workers ran, drains included. It grows with min_replicas, and with how slowly "
            "scale_down shrinks a pool.",
            (_HOURS, "{{pool}}"),
        ),
        number(
            "Cost of the workers in the range",
            "short",
            "Worker-hours times the price at the top, in the currency of that price. CAS, scheduler and network are "
            "not in it.",
            (f"sum({_HOURS}) * $price", "cost"),
        ),
        number(
            "Saved by the action cache in the range",
            "short",
            "Hits, times the mean execution of an action, as worker-hours at the price at the top. An estimate: a hit "
            "may have been a longer or shorter action. Less than the cost of the CAS: the cache does not pay.",
            (f"({_SAVED}) * $price", "saved"),
        ),
        share(
            "Slots in use now",
            "Executing actions, of what the running workers can take at once. Needs an autoscaler on the pool, and "
            "counts its target as the number of slots.",
            (UTILISATION, "in use"),
        ),
        graph(
            "Workers that run, by pool",
            "short",
            "What is paid for. Normal: min_replicas without builds. More for long: runbook NativeLinkDrainStuck, or a "
            "min_replicas that is too high.",
            (RUNNING, "{{pool}}"),
            stacked=True,
        ),
        graph(
            "Slots in use",
            "percentunit",
            "Normal: above 0.7 during builds. Lower: workers wait for work, so min_replicas is too high, scale_down "
            "too slow, or the builds are short. At 1 with a queue: raise max_replicas.",
            (UTILISATION, "in use"),
            top=1,
        ),
        graph(
            "CPU of the CAS",
            "short",
            "Cores that the CAS uses. Near its limit: uploads and downloads slow down, so raise "
            "nativelink_cas_resources or nativelink_cas_replicas.",
            (
                f'sum by (pod) (rate(container_cpu_usage_seconds_total{{{CAS_PODS},container!=""}}[$__rate_interval]))',
                "{{pod}}",
            ),
        ),
        needs=("cluster", "namespace", "workers_namespace", "pool"),
        variables=(
            text_variable(
                "price", "Price of a worker-hour", "0.4", "What an hour of one worker costs, in any currency."
            ),
        ),
    )

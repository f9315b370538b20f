"""GitOps: whether Flux or Argo CD applies the tree."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.panels import OURS, SHARED, board, graph, listing, number, or_zero, row

# Both engines name their objects after the cluster.
_FLUX = f'{OURS},kind=~"GitRepository|Kustomization",name=~"nativelink-.+"'
_READY = f'{SHARED},name=~"nativelink-.+"'
_ARGO = f'{OURS},name=~"nativelink-.+"'
_FAILED = f'{OURS},controller=~"gitrepository|kustomization"'


def made() -> Dashboard:
    """Return the dashboard."""
    return board(
        "gitops",
        "GitOps",
        "Does the cluster have what Git says? Each panel reads Flux or Argo CD, whichever the cluster has.",
        row("State"),
        number(
            "Applications that differ from Git",
            "short",
            "Argo CD. Normal: 0, or 1 for a minute after a push. Otherwise: runbook NativeLinkGitOpsOutOfSync. Flux "
            "does not report it: see the failures.",
            (or_zero(f'sum(argocd_app_info{{{_ARGO},sync_status!="Synced"}})'), "differ"),
            warn=1,
        ),
        number(
            "Objects that are not ready",
            "short",
            "Normal: 0, or 1 while a rollout runs. Otherwise: runbook NativeLinkGitOpsFailing. Flux's are known only "
            "to a kube-state-metrics that watches Flux's resources.",
            (
                or_zero(
                    f'sum(gotk_resource_info{{{_READY},ready="False"}})'
                    f' or sum(argocd_app_info{{{_ARGO},health_status!="Healthy"}})'
                ),
                "not ready",
            ),
            warn=1,
        ),
        number(
            "Failures in 15 minutes",
            "short",
            "Attempts to read Git or to apply the tree that failed. Normal: 0. Otherwise: runbook "
            "NativeLinkGitOpsFailing.",
            (
                f'sum(increase(controller_runtime_reconcile_total{{{_FAILED},result="error"}}[15m]))'
                f' or sum(increase(argocd_app_sync_total{{{_ARGO},phase=~"Error|Failed"}}[15m])) or vector(0)',
                "failures",
            ),
            fail=1,
        ),
        listing(
            "Objects",
            "short",
            "Of the engine, with the number of attempts in an hour. Argo CD also says their state. One without "
            "attempts: the engine is away or suspended.",
            (
                f"sum by (kind, name) (increase(gotk_reconcile_duration_seconds_count{{{_FLUX}}}[1h]))"
                f" or sum by (name, sync_status, health_status) (argocd_app_info{{{_ARGO}}})",
                "attempts",
            ),
        ),
        row("Work"),
        graph(
            "Attempts a minute",
            "short",
            "How often the engine compared Git and cluster. Normal: steady, from the intervals. 0: the engine is away.",
            (
                f"sum by (kind) (rate(gotk_reconcile_duration_seconds_count{{{_FLUX}}}[$__rate_interval])) * 60"
                f" or sum by (dest_server) (rate(argocd_app_reconcile_count{{{OURS}}}[$__rate_interval])) * 60",
                "{{kind}}{{dest_server}}",
            ),
        ),
        graph(
            "Time of an attempt",
            "s",
            "95 % are below. Normal: seconds. Flux waits for the workloads of the tree, so a rollout takes as long as "
            "it takes.",
            (
                f"histogram_quantile(0.95, sum by (le, kind) "
                f"(rate(gotk_reconcile_duration_seconds_bucket{{{_FLUX}}}[$__rate_interval])))"
                f" or histogram_quantile(0.95, sum by (le, dest_server) "
                f"(rate(argocd_app_reconcile_bucket{{{OURS}}}[$__rate_interval])))",
                "{{kind}}{{dest_server}}",
            ),
        ),
        graph(
            "Attempts by result",
            "short",
            "In 5 minutes. Normal: success, Succeeded. error, Error or Failed: runbook NativeLinkGitOpsFailing.",
            (
                f"sum by (result) (increase(controller_runtime_reconcile_total{{{_FAILED}}}[5m]))"
                f" or sum by (phase) (increase(argocd_app_sync_total{{{_ARGO}}}[5m]))",
                "{{result}}{{phase}}",
            ),
            stacked=True,
        ),
        needs=("cluster",),
    )

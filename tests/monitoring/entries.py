"""Entries of the inventory that have all alerts between them."""

from typing import Any

from ansible_collections.nativelink.gitops.plugins.plugin_utils import render

from testkit.trees import values_of

_ALL: dict[str, Any] = {
    "nativelink_metrics": ["scheduler", "cas", "worker"],
    "nativelink_prometheus": "bundled",
    "nativelink_prometheus_scrapes": ["edge", "keda", "gitops", "cluster"],
    "nativelink_scaling": "keda",
    "nativelink_edge": "gateway",
    "nativelink_hostname": "nativelink.example.com",
    "nativelink_edge_tls_secret": "edge-tls",
    "nativelink_edge_client_ca_secret": "clients-ca",
    "ingress_provider": "envoy-gateway",
    "nativelink_mutual_tls_secret": "mutual-tls",
    "nativelink_mutual_tls_expires": "1970-02-01",  # the time of promtool begins in 1970
    "nativelink_runbook_url": "https://example.com/alerts",
}
VARIABLES: dict[str, dict[str, Any]] = {
    "memory": {**_ALL, "gitops_provider": "flux", "gitops_namespace": "flux-system"},
    "redis": {
        **_ALL,
        "gitops_provider": "argocd",
        "gitops_namespace": "argocd",
        "nativelink_scheduler_backend": "redis",
    },
}
"""The variables of an entry for each backend. Each entry is named `test`."""


def files(backend: str, **variables: Any) -> dict[str, str]:
    """Return the rendered files of an entry, with more variables."""
    return render.tree(values_of("test", **{**VARIABLES[backend], **variables}))

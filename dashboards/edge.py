"""The edge: clients, codes and times at Envoy."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.panels import FARM, LISTENERS, OURS, ROUTES, board, graph, number, or_zero, per_second, quantile, row

_CLUSTER = "envoy_cluster_name"
_CACHE = f'{OURS},envoy_cluster_name=~"grpcroute/$namespace/nativelink-cache/.+"'


def _routes(counter: str) -> str:
    """Return a query of a counter's growth each second, by route."""
    return _by_route(per_second(counter, ROUTES, _CLUSTER))


def _by_route(query: str) -> str:
    return f"sum by (route) ({_named(query)})"


def _named(query: str) -> str:
    return f'label_replace({query}, "route", "$1", "{_CLUSTER}", "grpcroute/[^/]+/nativelink-([a-z]+).*")'


def made() -> Dashboard:
    """Return the dashboard."""
    expiry = f'min(envoy_listener_ssl_certificate_expiration_unix_time_seconds{{{OURS},envoy_tls_certificate!=""}})'
    return board(
        "edge",
        "Edge",
        "Do clients get in, are they answered, and how long does it take? For Envoy Gateway: an Ingress controller has "
        "series of its own.",
        row("Clients"),
        number(
            "Connections now",
            "short",
            "Of clients. Normal: one or a few for each build that runs.",
            (f"sum(envoy_http_downstream_cx_active{{{LISTENERS}}})", "connections"),
        ),
        number(
            "Calls now",
            "short",
            "That are not answered yet. An Execute lasts as long as its action, so builds have many.",
            (f"sum(envoy_http_downstream_rq_active{{{LISTENERS}}})", "calls"),
        ),
        number(
            "Pods that answer",
            "short",
            "Pods that Envoy sends calls to. Normal: all CAS pods, and the schedulers. 0: clients get UNAVAILABLE "
            "(runbook NativeLinkEdgeGivesUp).",
            (
                f"max by (route) ({_named(f'envoy_cluster_membership_healthy{{{ROUTES}}}')})",
                "{{route}}",
            ),
            warn=1,
            fail=0.5,
        ),
        number(
            "Certificate is valid for",
            "s",
            "Normal: weeks. Less than two weeks: runbook NativeLinkCertificateExpiry. 0 without TLS.",
            (or_zero(f"({expiry} - time())"), "valid"),
            warn=1209600,
            fail=259200,
        ),
        graph(
            "Connections",
            "short",
            "Normal: follows the builds. A fall to 0 with builds waiting: the load balancer or the proxy is away.",
            (f"sum(envoy_http_downstream_cx_active{{{LISTENERS}}})", "open"),
        ),
        graph(
            "Connections that were refused a second",
            "ops",
            "no certificate and wrong certificate: the client's. handshake: no TLS, or a client that does not trust "
            "the edge. Normal: 0, apart from port scanners.",
            (or_zero(per_second("envoy_listener_ssl_connection_error", OURS)), "handshake"),
            (or_zero(per_second("envoy_listener_ssl_fail_verify_no_cert", OURS)), "no certificate"),
            (or_zero(per_second("envoy_listener_ssl_fail_verify_error", OURS)), "wrong certificate"),
            (or_zero(per_second("envoy_listener_downstream_cx_overload_reject", OURS)), "overload"),
        ),
        graph(
            "Bytes from and to clients",
            "Bps",
            "Normal: follows the builds. Flat at the limit of the network: builds wait for downloads; consider "
            "--remote_download_minimal.",
            (per_second("envoy_http_downstream_cx_rx_bytes_total", LISTENERS), "from clients"),
            (per_second("envoy_http_downstream_cx_tx_bytes_total", LISTENERS), "to clients"),
        ),
        row("Answers"),
        graph(
            "Calls a second, by route",
            "reqps",
            "cache is the CAS, execution the scheduler. Normal: follows the builds.",
            (_routes("envoy_cluster_upstream_rq_total"), "{{route}}"),
            stacked=True,
        ),
        graph(
            "Answers a second, by HTTP class",
            "reqps",
            "From the pods to Envoy. Normal: 2 only: a gRPC error is a 2 as well, and stands in the next panel. 5: "
            "runbook NativeLinkEdgeErrors.",
            (
                per_second("envoy_cluster_upstream_rq_xx", ROUTES, "envoy_response_code_class"),
                "{{envoy_response_code_class}}xx",
            ),
            stacked=True,
        ),
        graph(
            "Calls a second, by gRPC code",
            "reqps",
            "As NativeLink answered them. Normal: 0 (OK) and 5 (not found, a miss). 14: a pod is away. 7 or 16: the "
            "edge refuses the client, and NativeLink does not see the call.",
            (
                per_second(
                    "nativelink_rpc_server_duration_seconds_count",
                    f'{OURS},rpc_service=~"build.bazel.+|google.bytestream.+"',
                    "rpc_grpc_status_code",
                ),
                "{{rpc_grpc_status_code}}",
            ),
            stacked=True,
        ),
        graph(
            "Time of calls to the cache",
            "ms",
            "At Envoy. Normal: below 100 ms without large files. More: look at the dashboard Cache.",
            (quantile(0.5, "envoy_cluster_upstream_rq_time", _CACHE), "half below"),
            (quantile(0.95, "envoy_cluster_upstream_rq_time", _CACHE), "95 % below"),
            (quantile(0.99, "envoy_cluster_upstream_rq_time", _CACHE), "99 % below"),
        ),
        graph(
            "Retries a second",
            "ops",
            "Envoy tries again while a pod is away. Normal: 0, apart from rollouts. Given up: the client got an error "
            "(runbook NativeLinkEdgeGivesUp).",
            (_routes("envoy_cluster_upstream_rq_retry"), "{{route}}"),
            (per_second("envoy_cluster_upstream_rq_retry_limit_exceeded", ROUTES), "given up"),
        ),
        graph(
            "Calls that Envoy gave up a second",
            "ops",
            "Normal: 0. overflow: a circuit breaker is too small. no connection: no pod answers. direct: no pod is "
            "known. All: runbook NativeLinkEdgeGivesUp.",
            (per_second("envoy_cluster_upstream_rq_pending_overflow", ROUTES), "overflow"),
            (per_second("envoy_cluster_upstream_rq_timeout", ROUTES), "timeout"),
            (per_second("envoy_cluster_upstream_cx_connect_fail", ROUTES), "no connection"),
            (per_second("envoy_http_rq_direct_response", LISTENERS), "direct"),
        ),
        needs=FARM,
    )

"""What the workloads report to the collector, and what Prometheus scrapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# The workloads that can send, and the collector's port for each. With a port of its own, a worker, which runs other
# people's commands, can neither set the demand that scaling follows nor report in the name of the CAS.
SENDERS = {"scheduler": 4317, "cas": 14317, "worker": 24317}
# Seconds between two exports of what scaling does not follow.
REPORT_INTERVAL = 15
# NativeLink has no switch for its exporters. A queue of length zero takes no log (seen on v1.6.6 and v1.3.2).
_NO_LOGS = ("OTEL_BLRP_MAX_QUEUE_SIZE", "0")
_NO_TRACES = ("OTEL_TRACES_SAMPLER", "always_off")
# The interval is a year.
_NO_METRICS = ("OTEL_METRIC_EXPORT_INTERVAL", "31536000000")
# The services that NativeLink serves, as a regular expression. All others are what clients made up.
SERVICES = r"^(build\\.bazel|google|com\\.github\\.trace_machina|grpc)\\."

# All that workers send (v1.6.6: source), by name and attribute. What else comes to their port is made up, by an action.
WORKER_METRICS = r"^(store\\.tier\\.(operations|io)|connection\\.(pool\\.(acquisitions|available)|reconnects))$"
WORKER_ATTRIBUTES = ("store.tier", "store.result", "store.direction", "connection.pool", "connection.result")
# MiB of memory that a collector may use, and those from which on it collects its garbage more eagerly.
MEMORY, MEMORY_EAGER = 512, 384

# The series of others that alerts and dashboards use.
KEDA = "keda_.+"
STATES = "kube_(pod|deployment|statefulset|horizontalpodautoscaler|persistentvolumeclaim|node)_.+|gotk_resource_info"
_KUBELET = "kubelet_volume_stats_.+|container_(memory_working_set_bytes|oom_events_total|cpu_usage_seconds_total)"


def kubelet_series(known: Mapping[str, Any]) -> str:
    """The series of kubelets to keep, as a regular expression of name and namespace."""
    return f"({_KUBELET});({known['nativelink_namespace']}|{known['nativelink_workers_namespace']})"


def environment(
    known: Mapping[str, Any], senders: Sequence[str], sender: str, **attributes: str
) -> list[dict[str, Any]]:
    """The variables of a NativeLink container by which it sends metrics and traces, or sends nothing at all.

    `known` are the cluster's variables with all defaults, `senders` the workloads that send. `attributes` are what a
    sender says of itself besides its pod.
    """
    if sender not in senders:
        return _variables([_NO_METRICS, _NO_TRACES, _NO_LOGS])
    traces = [_NO_TRACES]
    if known["nativelink_traces_endpoint"]:
        ratio = f"{known['nativelink_traces_percent'] * 0.01:g}"
        traces = [("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", ratio)]
    interval = known["nativelink_metrics_interval"] if sender == "scheduler" else REPORT_INTERVAL
    address = f"nativelink-{collector_of(sender)}.{known['nativelink_namespace']}.svc:{SENDERS[sender]}"
    of_itself = ["k8s.pod.name=$(POD_NAME)", *(f"nativelink.{name}={value}" for name, value in attributes.items())]
    # A worker has it anyway.
    pod = {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    return ([] if sender == "worker" else [pod]) + _variables(
        [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{address}"),
            ("OTEL_METRIC_EXPORT_INTERVAL", str(interval * 1000)),
            ("OTEL_RESOURCE_ATTRIBUTES", ",".join(of_itself)),
            *traces,
            _NO_LOGS,
        ]
    )


def collector_of(sender: str) -> str:
    """The component that collects what a workload sends.

    Workers have a collector of their own: whatever an action sends to it, the demand goes on.
    """
    return "collector-workers" if sender == "worker" else "collector"


def collectors(senders: Sequence[str], demand: bool) -> list[dict[str, Any]]:
    """The collectors that some workloads need: `component`, `senders`, and the Prometheus `ports` with their names.

    `demand` is true where a collector serves the demand of a scheduler in memory.
    """
    found = []
    for component in ("collector", "collector-workers"):
        own = [{"name": name, "port": SENDERS[name]} for name in senders if collector_of(name) == component]
        ports = [{"name": "workers" if component == "collector-workers" else "reported", "port": "reported"}]
        if demand and component == "collector":
            ports = [{"name": "metrics", "port": "metrics"}, *ports]
        if own:
            found.append({"component": component, "senders": own, "ports": ports})
    return found


def reports(senders: Sequence[str]) -> dict[str, Any]:
    """What the configurations of the collectors need; `expiration` is in seconds, and memory in MiB."""
    return {
        "senders": [name for name in senders if name != "worker"],
        "services": SERVICES,
        "expiration": 4 * REPORT_INTERVAL,
        "worker_metrics": WORKER_METRICS,
        "worker_attributes": WORKER_ATTRIBUTES,
        "memory": MEMORY,
        "memory_eager": MEMORY_EAGER,
    }


@dataclass(frozen=True)
class Target:
    """A port of one of the tree's own Services, and the condition of `template_context()["features"]` for it.

    `port` is a name in `context.PORTS`.
    """

    name: str
    component: str
    port: str
    port_name: str
    condition: str
    # True where scaling may follow it.
    demand: bool


OWN = (
    Target("nativelink-collector", "collector", "metrics", "http-metrics", "collected_demand", demand=True),
    Target("nativelink-reported", "collector", "reported", "http-reported", "collector", demand=False),
    Target("nativelink-workers", "collector-workers", "reported", "http-workers", "worker_metrics", demand=False),
    Target("nativelink-demand", "demand", "demand", "http-metrics", "demand", demand=True),
)


@dataclass(frozen=True)
class Scrape:
    """Pods of others that Prometheus scrapes: their namespace and labels, the port and path, and the series to keep.

    `series` is a regular expression; without it, all series are kept.
    """

    name: str
    namespace: str
    labels: Mapping[str, str]
    port: int
    path: str = "/metrics"
    series: str = ""
    # The pods also have one of these values of a label.
    key: str = ""
    values: tuple[str, ...] = ()
    # True where the labels namespace and pod of a series are those of what it tells of.
    honor_labels: bool = False

    @property
    def selector(self) -> str:
        """The label selector as one text."""
        stated = [f"{key}={value}" for key, value in self.labels.items()]
        return ",".join([*stated, f"{self.key} in ({','.join(self.values)})"] if self.key else stated)


def proxies(known: Mapping[str, Any]) -> dict[str, str]:
    """The labels that Envoy Gateway gives the proxies of the tree's Gateway."""
    return {
        f"gateway.envoyproxy.io/owning-gateway-{key}": value
        for key, value in (("name", "nativelink"), ("namespace", known["nativelink_namespace"]))
    }


def others(known: Mapping[str, Any]) -> list[Scrape]:
    """The pods of other projects that `nativelink_prometheus_scrapes` names."""
    engines = {
        "argocd": Scrape(
            "nativelink-gitops",
            known["gitops_namespace"],
            {"app.kubernetes.io/name": "argocd-application-controller"},
            8082,
            honor_labels=True,
        ),
        "flux": Scrape(
            "nativelink-gitops",
            known["gitops_namespace"],
            {},
            8080,
            key="app",
            values=("kustomize-controller", "source-controller"),
            honor_labels=True,
        ),
    }
    operator = Scrape(
        "nativelink-keda",
        known["keda_namespace"],
        {"app": "keda-operator"},
        8080,
        series=KEDA,
        honor_labels=True,
    )
    wanted = known["nativelink_prometheus_scrapes"]
    found = [
        ("edge", Scrape("nativelink-edge", known["ingress_namespace"], proxies(known), 19001, "/stats/prometheus")),
        ("keda", operator),
        ("gitops", engines.get(known["gitops_provider"])),
        (
            "cluster",
            Scrape(
                "nativelink-kube-state-metrics",
                known["nativelink_kube_state_metrics_namespace"],
                {"app.kubernetes.io/name": "kube-state-metrics"},
                8080,
                series=STATES,
                honor_labels=True,
            ),
        ),
    ]
    return [scrape for name, scrape in found if name in wanted and scrape]


def _variables(values: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in values]

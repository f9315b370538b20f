"""What the workloads report, and what a cluster's Prometheus alerts on and scrapes.

Rules, inhibitions and scrapes are in roles/nativelink/files/monitoring.yml.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from .derived import scaling_of
from .ports import PORTS
from .quantities import midnight_of, seconds_of
from .specs import ROOT

FILE = ROOT / "roles/nativelink/files/monitoring.yml"
DATA: dict[str, Any] = yaml.load(FILE.read_text(), yaml.CSafeLoader)
Names = Mapping[str, str]
Features = Mapping[str, bool]
# The workloads that can send, and the collector's port for each. With a port of its own, a worker, which runs other
# people's commands, can neither set the demand that scaling follows nor report in the name of the CAS.
SENDERS = {"scheduler": 4317, "cas": 14317, "worker": 24317}
# Seconds between two exports of what scaling does not follow.
REPORT_INTERVAL = 15
# What the configurations of the collectors need.
REPORTS = {
    # The services that NativeLink serves, as a regular expression. All others are what clients made up.
    "services": r"^(build\\.bazel|google|com\\.github\\.trace_machina|grpc)\\.",
    # All that workers send (v1.6.6: source), by name and attribute. What else comes to their port is made up, by an
    # action.
    "worker_metrics": r"^(store\\.tier\\.(operations|io)|connection\\.(pool\\.(acquisitions|available)|reconnects))$",
    "worker_attributes": ("store.tier", "store.result", "store.direction", "connection.pool", "connection.result"),
    "expiration": 4 * REPORT_INTERVAL,  # seconds
    # MiB of memory that a collector may use, and those from which on it collects its garbage more eagerly.
    "memory": 512,
    "memory_eager": 384,
}


def collectors(senders: Sequence[str], demand: bool) -> list[dict[str, Any]]:
    """The collectors that some workloads need: `component`, `senders`, and the Prometheus `ports` with their names.

    Workers have a collector of their own: whatever an action sends to it, the demand goes on. `demand` is true where a
    collector serves the demand of a scheduler in memory.
    """
    found = []
    for component in ("collector", "collector-workers"):
        own = [
            {"name": name, "port": SENDERS[name]}
            for name in senders
            if (name == "worker") == (component == "collector-workers")
        ]
        ports = [{"name": "workers" if component == "collector-workers" else "reported", "port": PORTS["reported"]}]
        if demand and component == "collector":
            ports = [{"name": "metrics", "port": PORTS["metrics"]}, *ports]
        if own:
            found.append({"component": component, "senders": own, "ports": ports})
    return found


def names(values: Mapping[str, Any], features: Features, store: Mapping[str, int]) -> dict[str, str]:
    """What %(name)s stands for in a cluster, from its variables with the defaults of nested keys.

    `store` is the eviction policy of a CAS pod's content.
    """
    day, pools = values["nativelink_mutual_tls_expires"], values["nativelink_worker_pools"]
    found = {
        "cluster": values["cluster"],
        "namespace": values["nativelink_namespace"],
        "workers_namespace": values["nativelink_workers_namespace"],
        "engine_namespace": values["gitops_namespace"],
        "ingress_namespace": values["ingress_namespace"],
        "keda_namespace": values["keda_namespace"],
        "states_namespace": values["nativelink_kube_state_metrics_namespace"],
        "pools": "|".join(pool["name"] for pool in pools),
        "scaled_pools": "|".join(pool["name"] for pool in pools if scaling_of(pool, values) != "none"),
        "first_pool": pools[0]["name"],
        "expires": day,
        "expires_at": str(midnight_of(day)),
        "flux_window": str(max(600, 5 * seconds_of(values["gitops_interval"]))),
        "store_bytes": str(store["max_bytes"]),
        "store_files": str(store["max_count"]),
    }
    found |= {name: text % found for name, text in DATA["selectors"].items()}
    sources = (
        f'label_replace(absent({each["series"] % found}), "source", "{each["name"]}", "", "")'
        for each in _wanted(DATA["sources"], features)
    )
    return {**found, "lost_sources": " or ".join(sources)}


def groups(values: Mapping[str, Any], names: Names, features: Features) -> list[dict[str, Any]]:
    """The groups of Prometheus' alerting rules."""
    features = {**features, "sources": bool(names["lost_sources"])}
    entry = {"cluster": names["cluster"], "namespace": names["namespace"]}
    runbooks = values["nativelink_runbook_url"].rstrip("/")
    found = []
    for group, rules in DATA["groups"].items():
        filled = [
            {
                **_filled({key: rule[key] for key in ("alert", "expr", "for") if key in rule}, names),
                "labels": {**entry, "severity": rule["severity"]},
                "annotations": {
                    **_filled({key: rule[key] for key in ("summary", "description")}, names),
                    "runbook_url": f"{runbooks}/{rule['alert']}.md",
                },
            }
            for rule in _wanted(rules, features)
        ]
        found += [{"name": group, "rules": filled}] if filled else []
    return found


def targets(features: Features) -> list[dict[str, Any]]:
    """Our own ports that Prometheus scrapes."""
    return [{**each, "port": PORTS[each["port"]]} for each in _wanted(DATA["targets"], features)]


def scrapes(wanted: Sequence[str], names: Names, features: Features) -> list[dict[str, Any]]:
    """The pods of others that it scrapes. `selector` is their label selector as one text."""
    found = [_filled(each, names) for each in _wanted(DATA["scrapes"], features) if each["source"] in wanted]
    for each in found:
        stated = [f"{key}={value}" for key, value in each.get("labels", {}).items()]
        each["selector"] = ",".join(
            [*stated, *([f"{each['key']} in ({','.join(each['one_of'])})"] if "key" in each else [])]
        )
    return found


def _wanted(items: Sequence[Mapping[str, Any]], features: Features) -> Iterator[Mapping[str, Any]]:
    return (item for item in items if all(features[need] for need in item.get("needs", ())))


def _filled(value: Any, names: Names) -> Any:
    """A value of the file with the cluster's names in its texts."""
    if isinstance(value, Mapping):
        return {key: _filled(item, names) for key, item in value.items()}
    return value % names if isinstance(value, str) else value


def inhibit_rules(*, operator: bool) -> list[dict[str, Any]]:
    """The rules of an Alertmanager's configuration, or of the Prometheus Operator's AlertmanagerConfig."""

    def matchers(names: Sequence[str], labels: Mapping[str, str]) -> list[Any]:
        wanted = [("alertname", "=~", "|".join(names)), *((label, "=", value) for label, value in labels.items())]
        if operator:
            return [dict(zip(("name", "matchType", "value"), each, strict=True)) for each in wanted]
        return [f'{label}{kind}"{value}"' for label, kind, value in wanted]

    source, target = ("sourceMatch", "targetMatch") if operator else ("source_matchers", "target_matchers")
    return [
        {
            source: matchers(each["sources"], {}),
            target: matchers(each["targets"], each.get("where", {})),
            "equal": ["cluster", "namespace", *each.get("equal", ())],
        }
        for each in DATA["inhibitions"]
    ]

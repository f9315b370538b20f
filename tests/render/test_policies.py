"""The NetworkPolicies allow the flows of a table that is written by hand. The tests apply the API's rules to them."""

import ipaddress
from copy import deepcopy
from dataclasses import dataclass, field

import pytest
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render

from testkit.trees import Object, objects_of, values_of


@dataclass(frozen=True)
class Pod:
    """A pod, or a host outside the cluster if only `address` is set."""

    namespace: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    address: str = ""


def ours(component: str, namespace: str = "nativelink", **labels: str) -> Pod:
    labels |= {"app.kubernetes.io/name": "nativelink", "app.kubernetes.io/component": component}
    return Pod(namespace, labels)


def of_pool(component: str, pool: str = "default") -> Pod:
    return ours(component, "nativelink-workers", **{"nativelink-gitops/pool": pool})


def proxy(gateway: str, namespace: str) -> Pod:
    """Return a proxy of Envoy Gateway for a Gateway."""
    owner = "gateway.envoyproxy.io/owning-gateway"
    return Pod("edge", {"app": "envoy", f"{owner}-name": gateway, f"{owner}-namespace": namespace})


CONTROL = ("cas", "scheduler", "redis", "collector", "collector-workers", "demand", "prometheus", "verify")
PODS = {name: ours(name) for name in CONTROL} | {
    "worker": of_pool("worker"),
    "placeholder": of_pool("headroom"),
    "puller": of_pool("prepull"),
    "pruned": of_pool("worker", "a-pool-that-is-gone"),
    "impostor": ours("worker", "elsewhere"),  # it has our labels in another namespace
    "stray": Pod("nativelink", {"app": "debug"}),
    "stray-worker": Pod("nativelink-workers", {"app": "debug"}),
    "edge": proxy("nativelink", "nativelink"),
    "other-edge": proxy("x", "nativelink"),
    "edge-elsewhere": proxy("nativelink", "elsewhere"),
    "beside-edge": Pod("edge", {"app": "x"}),
    "keda": Pod("keda", {"app": "keda-operator"}),
    "adapter": Pod("metrics", {"app": "prometheus-adapter"}),
    "other": Pod("elsewhere", {"app": "x"}),
    "dns": Pod("kube-system", {"k8s-app": "kube-dns"}),
    "api-server": Pod("kube-system", {"component": "kube-apiserver"}),
    "node-dns": Pod(address="169.254.20.10"),
    "traces": Pod(address="192.0.2.7"),
    "internet": Pod(address="203.0.113.7"),
    "internet-8": Pod(address="203.0.113.8"),
    "metadata": Pod(address="169.254.169.254"),
}


def flows(*lines: str) -> list[str]:
    """Return the flows of lines such as `worker > cas:50052 dns:53`, one by one: `worker > cas:50052`."""
    parts = [line.split(" > ") for line in lines]
    return [f"{source} > {target}" for source, targets in parts for target in targets.split()]


# Ports of the scheduler: 50052 for clients, 50061 for workers. Of the CAS: 50051 for clients, 50052 for a shard, 50053
# for results. Of a collector: 4317, 14317, 24317 for scheduler, CAS, workers, 9464 for the demand, 9465 for the rest.
ALWAYS = flows(
    "worker > scheduler:50061 cas:50052 cas:50053 dns:53",
    "pruned > scheduler:50061 cas:50052",
    "scheduler > cas:50052 dns:53",
    "cas > cas:50052",
    "edge > cas:50051 scheduler:50052",
)
MEMORY_ONLY = flows("scheduler > collector:4317", "keda > collector:9464")
REDIS_ONLY = flows("scheduler > redis:6379", "demand > redis:6379", "keda > demand:9121")
FORBIDDEN = flows(
    "worker > scheduler:50052 cas:50051 redis:6379 collector:9464 collector:4317 worker:50080",
    "worker > api-server:6443 internet:443 internet:53 metadata:80 dns:9153",
    "edge > scheduler:50061 cas:50052 cas:50053 redis:6379",
    "other > scheduler:50061 scheduler:50052 cas:50051 cas:50052 cas:50053 collector:4317 worker:50080 stray:80",
    "impostor > scheduler:50061 cas:50052",
    "stray-worker > scheduler:50061 cas:50052",
    "placeholder > scheduler:50061",
    "puller > cas:50052",
    "cas > scheduler:50061 cas:50053 redis:6379 internet:443",
    "scheduler > cas:50051 cas:50053 worker:50080 internet:443",
    "redis > internet:443",
    "keda > redis:6379 collector:4317",
    "adapter > collector:9464 demand:9121",
    "internet > cas:50051 scheduler:50052",
)
REPORTING_ALLOWED = flows(
    "scheduler > collector:4317",
    "cas > collector:14317",
    "worker > collector-workers:24317",
    "prometheus > collector:9464 collector:9465 collector-workers:9465 keda:8080 edge:19001 internet:10250",
    "collector > traces:4317",
    "collector-workers > traces:4317",
)
REPORTING_FORBIDDEN = flows(
    "cas > collector:4317 collector-workers:24317",
    "worker > collector:4317 collector:14317 collector:24317 collector-workers:9465",
    "impostor > collector-workers:24317",
    "collector-workers > collector:4317",
    "collector > internet:4317",
    "prometheus > internet:80 other:8080",
)


def allowed(policies: list[Object], flow: str) -> bool:
    """Return True if the policies of both the sender and the receiver allow TCP to a port."""
    sender, _, receiver = flow.partition(" > ")
    name, _, port = receiver.partition(":")
    source, target = PODS[sender], PODS[name]
    return _side(policies, source, target, int(port), "Egress") and _side(
        policies, target, source, int(port), "Ingress"
    )


def _side(policies: list[Object], pod: Pod, peer: Pod, port: int, direction: str) -> bool:
    mine = [
        policy["spec"]
        for policy in policies
        if policy["metadata"]["namespace"] == pod.namespace
        and direction in policy["spec"]["policyTypes"]
        and _labelled(policy["spec"]["podSelector"], pod.labels)
    ]
    if not mine:
        return True  # no policy selects the pod for this direction, so all traffic is allowed
    rules, key = direction.lower(), "to" if direction == "Egress" else "from"
    return any(
        _port(rule.get("ports"), port) and (not rule.get(key) or any(_peer(item, peer, pod) for item in rule[key]))
        for spec in mine
        for rule in spec.get(rules) or []
    )


def _port(ports: list[Object] | None, port: int) -> bool:
    return not ports or any(item.get("protocol", "TCP") == "TCP" and item.get("port", port) == port for item in ports)


def _peer(item: Object, peer: Pod, of: Pod) -> bool:
    if "ipBlock" in item:
        if not peer.address:
            return False
        block, address = item["ipBlock"], ipaddress.ip_address(peer.address)
        return address in ipaddress.ip_network(block["cidr"]) and not any(
            address in ipaddress.ip_network(hole) for hole in block.get("except", [])
        )
    if peer.address:
        return False
    if "namespaceSelector" in item:
        there = _labelled(item["namespaceSelector"], {"kubernetes.io/metadata.name": peer.namespace})
    else:
        there = peer.namespace == of.namespace
    return there and _labelled(item.get("podSelector", {}), peer.labels)


def _labelled(selector: Object, labels: dict[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels"}, "these tests cannot evaluate expressions"
    return selector.get("matchLabels", {}).items() <= labels.items()


def policies_of(**variables: object) -> list[Object]:
    objects = objects_of(render.tree(values_of(keda_namespace="keda", **variables)))
    return [item for item in objects if item["kind"] == "NetworkPolicy"]


MEMORY = policies_of()
SHARED = policies_of(nativelink_scheduler_backend="redis", nativelink_scheduler_replicas=2)
REPORTING = policies_of(
    nativelink_metrics=["scheduler", "cas", "worker"],
    nativelink_traces_endpoint="http://192.0.2.7:4317",
    nativelink_prometheus="bundled",
    nativelink_prometheus_scrapes=["edge", "keda", "cluster"],
    ingress_provider="envoy-gateway",
)


FLOWS = {
    "memory": (MEMORY, ALWAYS + MEMORY_ONLY, FORBIDDEN),
    "redis": (SHARED, ALWAYS + REDIS_ONLY, FORBIDDEN),
    # Each workload reports to its own port, and none in the name of another.
    "reporting": (REPORTING, REPORTING_ALLOWED, REPORTING_FORBIDDEN),
}


@pytest.mark.parametrize("case", FLOWS)
def test_the_required_flows_are_allowed_and_the_forbidden_ones_are_not(case: str) -> None:
    policies, required, forbidden = FLOWS[case]
    assert [flow for flow in required if not allowed(policies, flow)] == []
    assert [flow for flow in forbidden if allowed(policies, flow)] == []


@pytest.mark.parametrize("case", ["memory", "redis"])
def test_without_a_policy_its_flows_end_and_without_a_default_deny_forbidden_ones_get_through(case: str) -> None:
    """Each policy is necessary, because no other one allows its flows, or stops what the default deny stops."""
    policies, required, forbidden = FLOWS[case]
    for gone in policies:
        rest = [policy for policy in policies if policy is not gone]
        ended = [flow for flow in required if not allowed(rest, flow)]
        opened = [flow for flow in forbidden if allowed(rest, flow)]
        default = gone["metadata"]["name"] == "default-deny"
        assert (bool(ended), bool(opened)) == (not default, default), gone["metadata"]


@pytest.mark.parametrize("case", ["memory", "redis"])
def test_a_wider_rule_opens_a_forbidden_flow(case: str) -> None:
    """The peers of each rule stop forbidden flows, as this counter-run without them shows."""
    policies, _, forbidden = FLOWS[case]
    wider = deepcopy(policies)
    for policy in wider:
        for rule in policy["spec"].get("ingress", ()):
            peers = rule.pop("from")
            assert [flow for flow in forbidden if allowed(wider, flow)], (policy["metadata"]["name"], peers)
            rule["from"] = peers


OFFICE = {"ipBlock": {"cidr": "203.0.113.0/24", "except": ["203.0.113.8/32"]}}
CI = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "elsewhere"}}}
ANYWHERE = {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}}], "ports": [{"port": 443}]}
REDIS = {"nativelink_scheduler_backend": "redis"}
EXISTING = REDIS | {"nativelink_redis_provider": "existing"}
BUNDLED = {"nativelink_prometheus": "bundled", "nativelink_metrics_namespaces": ["metrics"]}
SCRAPING = {"nativelink_prometheus": "bundled", "nativelink_prometheus_scrapes": ["cluster"]}
HPA = {"nativelink_scaling": "hpa"}
VERIFIED = {"nativelink_edge": "none", "nativelink_verify_image": "example.com/ee:1"}
PUBLIC, CLIENTS = "cas:50051 scheduler:50052", "edge internet internet-8 other keda"
PROXIES = "edge other-edge edge-elsewhere beside-edge"
READERS, OURS = "keda adapter other worker edge", "cas scheduler collector worker"
# Variables, pods, the ports that they try, and those of the pods that reach each of them.
REACHED: list[tuple[dict[str, object], str, str, str]] = [
    ({}, CLIENTS, PUBLIC, "edge"),
    ({"nativelink_edge": "none"}, CLIENTS, PUBLIC, ""),
    ({"nativelink_client_peers": [OFFICE, CI]}, CLIENTS, PUBLIC, "edge internet other"),
    ({"nativelink_edge": "none", "nativelink_client_peers": [OFFICE]}, CLIENTS, PUBLIC, "internet"),
    # A controller that the cloud runs is not in a namespace.
    (
        {"ingress_provider": "existing", "ingress_namespace": "", "nativelink_client_peers": [OFFICE]},
        *(CLIENTS, PUBLIC, "internet"),
    ),
    ({"nativelink_client_peers": [OFFICE]}, "internet", "scheduler:50061 cas:50052 collector:9464", ""),
    # Of Envoy Gateway only the proxies of this Gateway come in. The labels of those of another provider are not known.
    ({"ingress_provider": "envoy-gateway"}, PROXIES, PUBLIC, "edge"),
    ({"ingress_provider": "existing"}, PROXIES, PUBLIC, PROXIES),
    # KEDA and the namespaces of the inventory read the demand.
    *(
        (backend | variables, READERS, port, found)
        for backend, port in (({}, "collector:9464"), (REDIS, "demand:9121"))
        for variables, found in (
            ({}, "keda"),
            ({"nativelink_metrics_namespaces": ["metrics"]}, "keda adapter"),
            (HPA, ""),
            (HPA | {"nativelink_metrics_namespaces": ["metrics"]}, "adapter"),
            (HPA | {"nativelink_worker_pools": [{"name": "a", "scaling": "keda"}, {"name": "b"}]}, "keda"),
        )
    ),
    # The bundled Prometheus reads the demand, and is read by them.
    ({"nativelink_metrics_namespaces": ["metrics"]}, "prometheus", "collector:9464", ""),
    (BUNDLED | REDIS, "prometheus", "demand:9121", "prometheus"),
    (BUNDLED, READERS, "prometheus:9090", "keda adapter"),
    (BUNDLED | REDIS, "prometheus", "scheduler:50061 redis:6379 internet:443 api-server:6443", ""),
    (SCRAPING, "prometheus", "api-server:6443", "prometheus"),
    (SCRAPING | {"nativelink_prometheus_api_server_ports": [8443]}, "prometheus", "api-server:6443", ""),
    (SCRAPING | {"nativelink_prometheus_api_server_ports": [6443]}, "prometheus", "api-server:6443", "prometheus"),
    # The Job of the playbook verify comes in as clients do.
    ({}, "verify", PUBLIC, ""),
    (VERIFIED, "verify stray other", PUBLIC, "verify"),
    (VERIFIED, "verify", "scheduler:50061 cas:50052 cas:50053 api-server:6443 internet:443", ""),
    (VERIFIED, "worker scheduler other", "verify:80", ""),
    ({}, OURS, "dns:53", OURS),
    ({}, OURS, "node-dns:53", ""),
    ({"nativelink_dns_peers": [{"ipBlock": {"cidr": "169.254.20.10/32"}}]}, OURS, "node-dns:53", OURS),
    ({"nativelink_dns_peers": [{"ipBlock": {"cidr": "169.254.20.10/32"}}]}, OURS, "dns:53", ""),
    ({"nativelink_worker_egress": [ANYWHERE]}, "worker cas", "internet:443", "worker"),
    ({"nativelink_worker_egress": [ANYWHERE]}, "worker cas", "internet:80 metadata:443", ""),
    *(
        (EXISTING | {"nativelink_redis_address": f"{host}:6380"}, "scheduler demand worker", ports, found)
        for host in ("203.0.113.7", "redis.example.com")
        for ports, found in (("internet:6380", "scheduler demand"), ("internet:443", ""))
    ),
    (EXISTING | {"nativelink_redis_address": "203.0.113.7:6380"}, "scheduler", "internet-8:6380", ""),
]


@pytest.mark.parametrize(("variables", "names", "ports", "found"), REACHED)
def test_a_port_is_reached_as_the_inventory_says(
    variables: dict[str, object], names: str, ports: str, found: str
) -> None:
    policies = policies_of(**variables)
    for port in ports.split():
        assert {name for name in names.split() if allowed(policies, f"{name} > {port}")} == set(found.split()), port


def test_policies_select_by_role_and_never_by_pool() -> None:
    for policy in MEMORY + SHARED:
        assert "nativelink-gitops/pool" not in str(policy), policy["metadata"]["name"]

"""The NetworkPolicies allow the flows of a table that is written by hand. The tests apply the API's rules to them."""

from __future__ import annotations

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


CONTROL = ("cas", "scheduler", "redis", "collector", "collector-workers", "demand", "prometheus")
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
    "other > scheduler:50061 scheduler:50052 cas:50051 cas:50052 cas:50053 collector:4317 worker:50080",
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


@pytest.mark.parametrize("flow", REPORTING_ALLOWED)
def test_each_workload_reports_to_its_own_port(flow: str) -> None:
    assert allowed(REPORTING, flow)


@pytest.mark.parametrize("flow", REPORTING_FORBIDDEN)
def test_no_workload_reports_in_the_name_of_another(flow: str) -> None:
    assert not allowed(REPORTING, flow)


@pytest.mark.parametrize("flow", ALWAYS + MEMORY_ONLY)
def test_required_flows_are_allowed(flow: str) -> None:
    assert allowed(MEMORY, flow)


@pytest.mark.parametrize("flow", ALWAYS + REDIS_ONLY)
def test_required_flows_with_redis_are_allowed(flow: str) -> None:
    assert allowed(SHARED, flow)


@pytest.mark.parametrize("policies", [MEMORY, SHARED], ids=["memory", "redis"])
@pytest.mark.parametrize("flow", FORBIDDEN)
def test_forbidden_flows_are_not_allowed(policies: list[Object], flow: str) -> None:
    assert not allowed(policies, flow)


# The flows that end without a policy. They are those of this policy, and no others.
BREAKS = {
    "nativelink/dns": flows("scheduler > dns:53"),
    "nativelink/nativelink-cas": flows(
        "worker > cas:50052 cas:50053",
        "pruned > cas:50052",
        "scheduler > cas:50052",
        "cas > cas:50052",
        "edge > cas:50051",
    ),
    "nativelink/nativelink-scheduler": flows(
        "worker > scheduler:50061",
        "pruned > scheduler:50061",
        "scheduler > cas:50052",
        "edge > scheduler:50052",
    ),
    "nativelink-workers/dns": flows("worker > dns:53"),
    "nativelink-workers/nativelink-worker": flows(
        "worker > scheduler:50061 cas:50052 cas:50053", "pruned > scheduler:50061 cas:50052"
    ),
    # No flow ends without a default deny. A test below shows the flows that it stops.
    "nativelink/default-deny": [],
    "nativelink-workers/default-deny": [],
}
MEMORY_BREAKS = {
    "nativelink/nativelink-collector": MEMORY_ONLY,
    "nativelink/nativelink-scheduler": [*BREAKS["nativelink/nativelink-scheduler"], "scheduler > collector:4317"],
}
REDIS_BREAKS = {
    "nativelink/nativelink-demand": ["demand > redis:6379", "keda > demand:9121"],
    "nativelink/nativelink-redis": ["scheduler > redis:6379", "demand > redis:6379"],
    "nativelink/nativelink-scheduler": [*BREAKS["nativelink/nativelink-scheduler"], "scheduler > redis:6379"],
}


@pytest.mark.parametrize(
    ("policies", "required", "breaks"),
    [(MEMORY, ALWAYS + MEMORY_ONLY, BREAKS | MEMORY_BREAKS), (SHARED, ALWAYS + REDIS_ONLY, BREAKS | REDIS_BREAKS)],
    ids=["memory", "redis"],
)
def test_without_a_policy_its_flows_end(
    policies: list[Object], required: list[str], breaks: dict[str, list[str]]
) -> None:
    """Each policy is necessary, because no other policy allows its flows."""
    found = {}
    for gone in policies:
        rest = [policy for policy in policies if policy is not gone]
        ended = {flow for flow in required if not allowed(rest, flow)}
        found[f"{gone['metadata']['namespace']}/{gone['metadata']['name']}"] = ended
    assert found == {name: set(each) for name, each in breaks.items()}


@pytest.mark.parametrize(
    ("policies", "name", "rule", "opened"),
    [
        (MEMORY, "nativelink-scheduler", 0, "other > scheduler:50061"),
        (MEMORY, "nativelink-scheduler", 1, "other > scheduler:50052"),
        (MEMORY, "nativelink-cas", 0, "other > cas:50052"),
        (MEMORY, "nativelink-cas", 1, "edge > cas:50053"),
        (MEMORY, "nativelink-cas", 2, "edge > cas:50052"),
        (MEMORY, "nativelink-cas", 3, "other > cas:50051"),
        (MEMORY, "nativelink-collector", 0, "other > collector:4317"),
        (MEMORY, "nativelink-collector", 1, "adapter > collector:9464"),
        (SHARED, "nativelink-demand", 0, "adapter > demand:9121"),
        (SHARED, "nativelink-redis", 0, "edge > redis:6379"),
    ],
)
def test_a_wider_rule_opens_a_forbidden_flow(policies: list[Object], name: str, rule: int, opened: str) -> None:
    """The peers of each rule stop the forbidden flows, as this counter-run without them shows."""
    wider = deepcopy(policies)
    (policy,) = [item for item in wider if item["metadata"]["name"] == name]
    del policy["spec"]["ingress"][rule]["from"]
    assert opened in FORBIDDEN
    assert not allowed(policies, opened)
    assert allowed(wider, opened)


@pytest.mark.parametrize(
    ("namespace", "flow"), [("nativelink", "other > stray:80"), ("nativelink-workers", "other > worker:50080")]
)
def test_without_a_default_deny_a_forbidden_flow_gets_through(namespace: str, flow: str) -> None:
    """The default deny stops these flows, as this counter-run without it shows."""
    assert not allowed(MEMORY, flow)
    deny = (namespace, "default-deny")
    assert allowed([each for each in MEMORY if (each["metadata"]["namespace"], each["metadata"]["name"]) != deny], flow)


def test_worker_egress_follows_the_inventory() -> None:
    egress = [{"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}}], "ports": [{"port": 443}]}]
    policies = policies_of(nativelink_worker_egress=egress)
    assert allowed(policies, "worker > internet:443")
    assert not any(allowed(policies, each) for each in flows("worker > internet:80 metadata:443", "cas > internet:443"))


def senders(policies: list[Object], names: str, receiver: str) -> set[str]:
    """Return those of some pods that reach a port."""
    return {name for name in names.split() if allowed(policies, f"{name} > {receiver}")}


PUBLIC = pytest.mark.parametrize("port", ["cas:50051", "scheduler:50052"])
DEMAND = pytest.mark.parametrize(("backend", "port"), [("memory", "collector:9464"), ("redis", "demand:9121")])


@PUBLIC
def test_clients_come_from_the_edge_and_from_where_the_inventory_says(port: str) -> None:
    office = {"ipBlock": {"cidr": "203.0.113.0/24", "except": ["203.0.113.8/32"]}}
    ci = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "elsewhere"}}}

    def clients(**variables: object) -> set[str]:
        return senders(policies_of(**variables), "edge internet internet-8 other keda", port)

    assert clients() == {"edge"}
    assert clients(nativelink_edge="none") == set()
    assert clients(nativelink_client_peers=[office, ci]) == {"edge", "internet", "other"}
    assert clients(nativelink_edge="none", nativelink_client_peers=[office]) == {"internet"}
    # A controller that the cloud runs is not in a namespace.
    cloud = {"ingress_provider": "existing", "ingress_namespace": ""}
    assert clients(**cloud, nativelink_client_peers=[office]) == {"internet"}


@PUBLIC
def test_of_envoy_gateway_only_the_proxies_of_this_gateway_come_in(port: str) -> None:
    names = "edge other-edge edge-elsewhere beside-edge"
    assert senders(policies_of(ingress_provider="envoy-gateway"), names, port) == {"edge"}
    # The labels of the proxies of another provider are not known.
    assert senders(policies_of(ingress_provider="existing"), names, port) == set(names.split())


def test_client_peers_reach_no_other_port() -> None:
    policies = policies_of(nativelink_client_peers=[{"ipBlock": {"cidr": "0.0.0.0/0"}}])
    assert allowed(policies, "internet > cas:50051")
    assert not any(allowed(policies, each) for each in flows("internet > scheduler:50061 cas:50052 collector:9464"))


@DEMAND
def test_keda_and_the_namespaces_of_the_inventory_read_the_demand(backend: str, port: str) -> None:
    def readers(**variables: object) -> set[str]:
        policies = policies_of(nativelink_scheduler_backend=backend, **variables)
        return senders(policies, "keda adapter other worker edge", port)

    mixed = [{"name": "a", "scaling": "keda"}, {"name": "b"}]
    assert readers() == {"keda"}
    assert readers(nativelink_metrics_namespaces=["metrics"]) == {"keda", "adapter"}
    assert readers(nativelink_scaling="hpa") == set()
    assert readers(nativelink_scaling="hpa", nativelink_metrics_namespaces=["metrics"]) == {"adapter"}
    assert readers(nativelink_scaling="hpa", nativelink_worker_pools=mixed) == {"keda"}


@DEMAND
def test_the_bundled_prometheus_reads_the_demand_and_is_read_by_keda(backend: str, port: str) -> None:
    variables = {"nativelink_scheduler_backend": backend, "nativelink_metrics_namespaces": ["metrics"]}
    bundled = policies_of(**variables, nativelink_prometheus="bundled")
    assert allowed(bundled, f"prometheus > {port}")
    assert not allowed(policies_of(**variables), f"prometheus > {port}"), "the counter-run: without the variable"
    assert senders(bundled, "keda adapter other worker", "prometheus:9090") == {"keda", "adapter"}
    beyond = flows("prometheus > scheduler:50061 redis:6379 internet:443 api-server:6443")
    assert not any(allowed(bundled, each) for each in beyond)


def test_dns_is_asked_where_the_inventory_says() -> None:
    names = "cas scheduler collector worker"
    policies = policies_of(nativelink_dns_peers=[{"ipBlock": {"cidr": "169.254.20.10/32"}}])
    assert senders(policies, names, "node-dns:53") == senders(MEMORY, names, "dns:53") == set(names.split())
    assert senders(policies, names, "dns:53") == senders(MEMORY, names, "node-dns:53") == set()


def test_dns_is_asked_over_udp_too() -> None:
    for policy in (item for item in MEMORY if item["metadata"]["name"] == "dns"):
        (rule,) = policy["spec"]["egress"]
        assert [(port["protocol"], port["port"]) for port in rule["ports"]] == [("UDP", 53), ("TCP", 53)]


def test_an_existing_redis_by_address_and_by_name() -> None:
    existing = {"nativelink_scheduler_backend": "redis", "nativelink_redis_provider": "existing"}
    by_address = policies_of(**existing, nativelink_redis_address="203.0.113.7:6380")
    by_name = policies_of(**existing, nativelink_redis_address="redis.example.com:6380")
    for policies in (by_address, by_name):
        assert senders(policies, "scheduler demand worker", "internet:6380") == {"scheduler", "demand"}
        assert not allowed(policies, "scheduler > internet:443")
    assert not allowed(by_address, "scheduler > internet-8:6380")


def test_policies_select_by_role_and_never_by_pool() -> None:
    for policy in MEMORY + SHARED:
        assert "nativelink-gitops/pool" not in str(policy), policy["metadata"]["name"]

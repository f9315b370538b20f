"""The NetworkPolicies allow the flows of a table that is written by hand. The tests apply the API's rules to them."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field

import pytest
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render

from testkit.trees import Object, objects_of, values_of

NAME = {"app.kubernetes.io/name": "nativelink"}


@dataclass(frozen=True)
class Pod:
    """A pod, or a host outside the cluster if only `address` is set."""

    namespace: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    address: str = ""


def ours(component: str, namespace: str = "nativelink", **labels: str) -> Pod:
    return Pod(namespace, {**NAME, "app.kubernetes.io/component": component, **labels})


CAS, SCHEDULER, REDIS, COLLECTOR, OF_WORKERS, DEMAND, PROMETHEUS = (
    ours(name) for name in ("cas", "scheduler", "redis", "collector", "collector-workers", "demand", "prometheus")
)
WORKER = ours("worker", "nativelink-workers", **{"nativelink-gitops/pool": "default"})
PLACEHOLDER, PULLING = (
    ours(name, "nativelink-workers", **{"nativelink-gitops/pool": "default"}) for name in ("headroom", "prepull")
)
PRUNED = ours("worker", "nativelink-workers", **{"nativelink-gitops/pool": "a-pool-that-is-gone"})
# A pod with our labels in another namespace.
IMPOSTOR = ours("worker", "elsewhere")


def proxy(gateway: str, namespace: str) -> Pod:
    """Return a proxy of Envoy Gateway for a Gateway."""
    owner = "gateway.envoyproxy.io/owning-gateway"
    return Pod("edge", {"app": "envoy", f"{owner}-name": gateway, f"{owner}-namespace": namespace})


EDGE, OTHER_EDGE, COPY = proxy("nativelink", "nativelink"), proxy("x", "nativelink"), proxy("nativelink", "elsewhere")
KEDA, OTHER = Pod("keda", {"app": "keda-operator"}), Pod("elsewhere", {"app": "x"})
STRAY = Pod("nativelink-workers", {"app": "debug"})
DNS = Pod("kube-system", {"k8s-app": "kube-dns"})
API_SERVER = Pod("kube-system", {"component": "kube-apiserver"})
ADAPTER = Pod("metrics", {"app": "prometheus-adapter"})
TRACES = Pod(address="192.0.2.7")
INTERNET, METADATA = Pod(address="203.0.113.7"), Pod(address="169.254.169.254")

Flow = tuple[Pod, Pod, int]
ALWAYS_ALLOWED: dict[str, Flow] = {
    "worker to scheduler": (WORKER, SCHEDULER, 50061),
    "worker to a slice": (WORKER, CAS, 50052),
    "worker to the writers' port": (WORKER, CAS, 50053),
    "worker of a pruned pool to scheduler": (PRUNED, SCHEDULER, 50061),
    "worker of a pruned pool to a slice": (PRUNED, CAS, 50052),
    "scheduler to a slice": (SCHEDULER, CAS, 50052),
    "CAS to CAS": (CAS, CAS, 50052),
    "edge to CAS": (EDGE, CAS, 50051),
    "edge to scheduler": (EDGE, SCHEDULER, 50052),
    "worker to DNS": (WORKER, DNS, 53),
    "scheduler to DNS": (SCHEDULER, DNS, 53),
}
REPORTING_ALLOWED: dict[str, Flow] = {
    "scheduler to its port of the collector": (SCHEDULER, COLLECTOR, 4317),
    "CAS to its port of the collector": (CAS, COLLECTOR, 14317),
    "worker to its collector": (WORKER, OF_WORKERS, 24317),
    "Prometheus to the demand": (PROMETHEUS, COLLECTOR, 9464),
    "Prometheus to the collector": (PROMETHEUS, COLLECTOR, 9465),
    "Prometheus to the collector of the workers": (PROMETHEUS, OF_WORKERS, 9465),
    "the collector of the workers to a receiver of traces": (OF_WORKERS, TRACES, 4317),
    "the collector to a receiver of traces": (COLLECTOR, TRACES, 4317),
    "Prometheus to KEDA": (PROMETHEUS, KEDA, 8080),
    "Prometheus to Envoy": (PROMETHEUS, EDGE, 19001),
    "Prometheus to a kubelet": (PROMETHEUS, INTERNET, 10250),
}
REPORTING_FORBIDDEN: dict[str, Flow] = {
    "CAS to the scheduler's port of the collector": (CAS, COLLECTOR, 4317),
    "worker to the scheduler's port of the collector": (WORKER, COLLECTOR, 4317),
    "worker to the port of the CAS of the collector": (WORKER, COLLECTOR, 14317),
    "worker to any port of the scheduler's collector": (WORKER, COLLECTOR, 24317),
    "CAS to the collector of the workers": (CAS, OF_WORKERS, 24317),
    "an impostor to the collector of the workers": (IMPOSTOR, OF_WORKERS, 24317),
    "worker to the metrics of its collector": (WORKER, OF_WORKERS, 9465),
    "the collector of the workers to the other one": (OF_WORKERS, COLLECTOR, 4317),
    "the collector to another host": (COLLECTOR, INTERNET, 4317),
    "Prometheus to the internet": (PROMETHEUS, INTERNET, 80),
    "Prometheus to a stranger": (PROMETHEUS, OTHER, 8080),
}
MEMORY_ALLOWED: dict[str, Flow] = {
    "scheduler to collector": (SCHEDULER, COLLECTOR, 4317),
    "KEDA to collector": (KEDA, COLLECTOR, 9464),
}
REDIS_ALLOWED: dict[str, Flow] = {
    "scheduler to Redis": (SCHEDULER, REDIS, 6379),
    "demand to Redis": (DEMAND, REDIS, 6379),
    "KEDA to demand": (KEDA, DEMAND, 9121),
}
WITH_MEMORY, WITH_REDIS = ALWAYS_ALLOWED | MEMORY_ALLOWED, ALWAYS_ALLOWED | REDIS_ALLOWED
FORBIDDEN: dict[str, Flow] = {
    "edge to worker API": (EDGE, SCHEDULER, 50061),
    "another namespace to worker API": (OTHER, SCHEDULER, 50061),
    "an impostor to worker API": (IMPOSTOR, SCHEDULER, 50061),
    "a stray pod beside the workers to worker API": (STRAY, SCHEDULER, 50061),
    "a placeholder to worker API": (PLACEHOLDER, SCHEDULER, 50061),
    "a pod that pulls images to slice port": (PULLING, CAS, 50052),
    "CAS to worker API": (CAS, SCHEDULER, 50061),
    "another namespace to client port": (OTHER, SCHEDULER, 50052),
    "worker to client port": (WORKER, SCHEDULER, 50052),
    "scheduler to CAS": (SCHEDULER, CAS, 50051),
    "worker to CAS": (WORKER, CAS, 50051),
    "a stray pod beside the workers to slice port": (STRAY, CAS, 50052),
    "an impostor to slice port": (IMPOSTOR, CAS, 50052),
    "another namespace to the writers' port": (OTHER, CAS, 50053),
    "edge to the writers' port": (EDGE, CAS, 50053),
    "scheduler to the writers' port": (SCHEDULER, CAS, 50053),
    "CAS to the writers' port": (CAS, CAS, 50053),
    "another namespace to slice port": (OTHER, CAS, 50052),
    "edge to slice port": (EDGE, CAS, 50052),
    "another namespace to CAS": (OTHER, CAS, 50051),
    "worker to Redis": (WORKER, REDIS, 6379),
    "CAS to Redis": (CAS, REDIS, 6379),
    "edge to Redis": (EDGE, REDIS, 6379),
    "KEDA to Redis": (KEDA, REDIS, 6379),
    "worker to the collector's metrics": (WORKER, COLLECTOR, 9464),
    "another namespace to the collector": (OTHER, COLLECTOR, 4317),
    "worker to the collector": (WORKER, COLLECTOR, 4317),
    "worker to worker": (WORKER, WORKER, 50080),
    "another namespace to worker": (OTHER, WORKER, 50080),
    "scheduler to worker": (SCHEDULER, WORKER, 50080),
    "worker to the API server": (WORKER, API_SERVER, 6443),
    "worker to the internet": (WORKER, INTERNET, 443),
    "worker to the cloud's metadata": (WORKER, METADATA, 80),
    "scheduler to the internet": (SCHEDULER, INTERNET, 443),
    "CAS to the internet": (CAS, INTERNET, 443),
    "Redis to the internet": (REDIS, INTERNET, 443),
    "worker to DNS on another port": (WORKER, DNS, 9153),
    "worker to a name server of its own": (WORKER, INTERNET, 53),
    "a metrics adapter to the collector": (ADAPTER, COLLECTOR, 9464),
    "a metrics adapter to demand": (ADAPTER, DEMAND, 9121),
    "KEDA to the collector's intake": (KEDA, COLLECTOR, 4317),
    "a client from outside to CAS": (INTERNET, CAS, 50051),
    "a client from outside to client port": (INTERNET, SCHEDULER, 50052),
}


def allowed(policies: list[Object], flow: Flow) -> bool:
    """Return True if the policies of both the sender and the receiver allow TCP to a port."""
    source, target, port = flow
    return _side(policies, source, target, port, "Egress") and _side(policies, target, source, port, "Ingress")


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


@pytest.mark.parametrize("flow", REPORTING_ALLOWED.values(), ids=REPORTING_ALLOWED)
def test_each_workload_reports_to_its_own_port(flow: Flow) -> None:
    assert allowed(REPORTING, flow)


@pytest.mark.parametrize("flow", REPORTING_FORBIDDEN.values(), ids=REPORTING_FORBIDDEN)
def test_no_workload_reports_in_the_name_of_another(flow: Flow) -> None:
    assert not allowed(REPORTING, flow)


@pytest.mark.parametrize("flow", WITH_MEMORY.values(), ids=WITH_MEMORY)
def test_required_flows_are_allowed(flow: Flow) -> None:
    assert allowed(MEMORY, flow)


@pytest.mark.parametrize("flow", WITH_REDIS.values(), ids=WITH_REDIS)
def test_required_flows_with_redis_are_allowed(flow: Flow) -> None:
    assert allowed(SHARED, flow)


@pytest.mark.parametrize("policies", [MEMORY, SHARED], ids=["memory", "redis"])
@pytest.mark.parametrize("flow", FORBIDDEN.values(), ids=FORBIDDEN)
def test_forbidden_flows_are_not_allowed(policies: list[Object], flow: Flow) -> None:
    assert not allowed(policies, flow)


# The flows that end without a policy. They are those of this policy, and no others.
MEMORY_BREAKS = {
    ("nativelink", "dns"): {"scheduler to DNS"},
    ("nativelink", "nativelink-cas"): {
        "worker to a slice",
        "worker to the writers' port",
        "worker of a pruned pool to a slice",
        "scheduler to a slice",
        "CAS to CAS",
        "edge to CAS",
    },
    ("nativelink", "nativelink-collector"): {"scheduler to collector", "KEDA to collector"},
    ("nativelink", "nativelink-scheduler"): {
        "worker to scheduler",
        "worker of a pruned pool to scheduler",
        "scheduler to a slice",
        "scheduler to collector",
        "edge to scheduler",
    },
    ("nativelink-workers", "dns"): {"worker to DNS"},
    ("nativelink-workers", "nativelink-worker"): {
        "worker to scheduler",
        "worker to a slice",
        "worker to the writers' port",
        "worker of a pruned pool to scheduler",
        "worker of a pruned pool to a slice",
    },
}
REDIS_BREAKS = {
    **{key: flows - MEMORY_ALLOWED.keys() for key, flows in MEMORY_BREAKS.items() if "collector" not in key[1]},
    ("nativelink", "nativelink-demand"): {"demand to Redis", "KEDA to demand"},
    ("nativelink", "nativelink-redis"): {"scheduler to Redis", "demand to Redis"},
}
REDIS_BREAKS["nativelink", "nativelink-scheduler"] |= {"scheduler to Redis"}


@pytest.mark.parametrize(
    ("policies", "flows", "breaks"),
    [(MEMORY, WITH_MEMORY, MEMORY_BREAKS), (SHARED, WITH_REDIS, REDIS_BREAKS)],
    ids=["memory", "redis"],
)
def test_without_a_policy_its_flows_end(
    policies: list[Object], flows: Mapping[str, Flow], breaks: Mapping[tuple[str, str], set[str]]
) -> None:
    """Each policy is necessary, because no other policy allows its flows."""
    found = {}
    for gone in policies:
        rest = [policy for policy in policies if policy is not gone]
        key = gone["metadata"]["namespace"], gone["metadata"]["name"]
        found[key] = {name for name, flow in flows.items() if not allowed(rest, flow)}
    # No flow ends without a default deny. A test below shows the flows that it stops.
    assert found.pop(("nativelink", "default-deny")) == found.pop(("nativelink-workers", "default-deny")) == set()
    assert found == breaks


@pytest.mark.parametrize(
    ("policies", "name", "rule", "opened"),
    [
        (MEMORY, "nativelink-scheduler", 0, "another namespace to worker API"),
        (MEMORY, "nativelink-scheduler", 1, "another namespace to client port"),
        (MEMORY, "nativelink-cas", 0, "another namespace to slice port"),
        (MEMORY, "nativelink-cas", 1, "edge to the writers' port"),
        (MEMORY, "nativelink-cas", 2, "edge to slice port"),
        (MEMORY, "nativelink-cas", 3, "another namespace to CAS"),
        (MEMORY, "nativelink-collector", 0, "another namespace to the collector"),
        (MEMORY, "nativelink-collector", 1, "a metrics adapter to the collector"),
        (SHARED, "nativelink-demand", 0, "a metrics adapter to demand"),
        (SHARED, "nativelink-redis", 0, "edge to Redis"),
    ],
)
def test_a_wider_rule_opens_a_forbidden_flow(policies: list[Object], name: str, rule: int, opened: str) -> None:
    """The peers of each rule stop the forbidden flows, as this counter-run without them shows."""
    wider = deepcopy(policies)
    (policy,) = [item for item in wider if item["metadata"]["name"] == name]
    del policy["spec"]["ingress"][rule]["from"]
    assert not allowed(policies, FORBIDDEN[opened])
    assert allowed(wider, FORBIDDEN[opened])


@pytest.mark.parametrize(
    ("namespace", "flow"),
    [
        ("nativelink", (OTHER, Pod("nativelink", {"app": "stray"}), 80)),
        ("nativelink-workers", (OTHER, WORKER, 50080)),
    ],
)
def test_without_a_default_deny_a_forbidden_flow_gets_through(namespace: str, flow: Flow) -> None:
    """The default deny stops these flows, as this counter-run without it shows."""
    assert not allowed(MEMORY, flow)
    without = [
        policy
        for policy in MEMORY
        if (policy["metadata"]["namespace"], policy["metadata"]["name"]) != (namespace, "default-deny")
    ]
    assert allowed(without, flow)


def test_worker_egress_follows_the_inventory() -> None:
    egress = [{"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}}], "ports": [{"port": 443}]}]
    policies = policies_of(nativelink_worker_egress=egress)
    assert allowed(policies, (WORKER, INTERNET, 443))
    assert not allowed(policies, (WORKER, INTERNET, 80))
    assert not allowed(policies, (WORKER, METADATA, 443))
    assert not allowed(policies, (CAS, INTERNET, 443))


@pytest.mark.parametrize("port", [(CAS, 50051), (SCHEDULER, 50052)], ids=["CAS", "scheduler"])
def test_clients_come_from_the_edge_and_from_where_the_inventory_says(port: tuple[Pod, int]) -> None:
    office = {"ipBlock": {"cidr": "203.0.113.0/24", "except": ["203.0.113.8/32"]}}
    ci = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "elsewhere"}}}

    def clients(**variables: object) -> set[str]:
        policies = policies_of(**variables)
        candidates = {"edge": EDGE, "office": INTERNET, "hole": Pod(address="203.0.113.8"), "ci": OTHER, "keda": KEDA}
        return {name for name, pod in candidates.items() if allowed(policies, (pod, *port))}

    assert clients() == {"edge"}
    assert clients(nativelink_edge="none") == set()
    assert clients(nativelink_client_peers=[office, ci]) == {"edge", "office", "ci"}
    assert clients(nativelink_edge="none", nativelink_client_peers=[office]) == {"office"}
    # A controller that the cloud runs is not in a namespace.
    cloud = {"ingress_provider": "existing", "ingress_namespace": ""}
    assert clients(**cloud, nativelink_client_peers=[office]) == {"office"}


@pytest.mark.parametrize("port", [(CAS, 50051), (SCHEDULER, 50052)], ids=["CAS", "scheduler"])
def test_of_envoy_gateway_only_the_proxies_of_this_gateway_come_in(port: tuple[Pod, int]) -> None:
    def allows(provider: str) -> list[bool]:
        policies = policies_of(ingress_provider=provider)
        return [allowed(policies, (pod, *port)) for pod in (EDGE, OTHER_EDGE, COPY, Pod("edge", {"app": "x"}))]

    assert allows("envoy-gateway") == [True, False, False, False]
    assert allows("existing") == [True] * 4, "the labels of the proxies of another provider are not known"


def test_client_peers_reach_no_other_port() -> None:
    policies = policies_of(nativelink_client_peers=[{"ipBlock": {"cidr": "0.0.0.0/0"}}])
    for flow in ((INTERNET, SCHEDULER, 50061), (INTERNET, CAS, 50052), (INTERNET, COLLECTOR, 9464)):
        assert not allowed(policies, flow)


@pytest.mark.parametrize(
    ("backend", "port"), [("memory", (COLLECTOR, 9464)), ("redis", (DEMAND, 9121))], ids=["collector", "demand"]
)
def test_keda_and_the_namespaces_of_the_inventory_read_the_demand(backend: str, port: tuple[Pod, int]) -> None:
    def readers(**variables: object) -> set[str]:
        policies = policies_of(nativelink_scheduler_backend=backend, **variables)
        candidates = {"keda": KEDA, "adapter": ADAPTER, "other": OTHER, "worker": WORKER, "edge": EDGE}
        return {name for name, pod in candidates.items() if allowed(policies, (pod, *port))}

    mixed = [{"name": "a", "scaling": "keda"}, {"name": "b"}]
    assert readers() == {"keda"}
    assert readers(nativelink_metrics_namespaces=["metrics"]) == {"keda", "adapter"}
    assert readers(nativelink_scaling="hpa") == set()
    assert readers(nativelink_scaling="hpa", nativelink_metrics_namespaces=["metrics"]) == {"adapter"}
    assert readers(nativelink_scaling="hpa", nativelink_worker_pools=mixed) == {"keda"}


@pytest.mark.parametrize(
    ("backend", "target"), [("memory", (COLLECTOR, 9464)), ("redis", (DEMAND, 9121))], ids=["collector", "demand"]
)
def test_the_bundled_prometheus_reads_the_demand_and_is_read_by_keda(backend: str, target: tuple[Pod, int]) -> None:
    variables = {"nativelink_scheduler_backend": backend, "nativelink_metrics_namespaces": ["metrics"]}
    bundled = policies_of(**variables, nativelink_prometheus="bundled")
    assert allowed(bundled, (PROMETHEUS, *target))
    assert not allowed(policies_of(**variables), (PROMETHEUS, *target)), "the counter-run: without the variable"
    for reader, reads in ((KEDA, True), (ADAPTER, True), (OTHER, False), (WORKER, False)):
        assert allowed(bundled, (reader, PROMETHEUS, 9090)) is reads
    for pod, port in ((SCHEDULER, 50061), (REDIS, 6379), (INTERNET, 443), (API_SERVER, 6443)):
        assert not allowed(bundled, (PROMETHEUS, pod, port))


def test_dns_is_asked_where_the_inventory_says() -> None:
    cache = {"ipBlock": {"cidr": "169.254.20.10/32"}}
    local = Pod(address="169.254.20.10")
    pods = (CAS, SCHEDULER, COLLECTOR, WORKER)
    assert {allowed(policies_of(nativelink_dns_peers=[cache]), (pod, local, 53)) for pod in pods} == {True}
    assert {allowed(policies_of(nativelink_dns_peers=[cache]), (pod, DNS, 53)) for pod in pods} == {False}
    assert {allowed(MEMORY, (pod, local, 53)) for pod in pods} == {False}


def test_dns_is_asked_over_udp_too() -> None:
    for policy in (item for item in MEMORY if item["metadata"]["name"] == "dns"):
        (rule,) = policy["spec"]["egress"]
        assert [(port["protocol"], port["port"]) for port in rule["ports"]] == [("UDP", 53), ("TCP", 53)]


def test_an_existing_redis_by_address_and_by_name() -> None:
    existing = {"nativelink_scheduler_backend": "redis", "nativelink_redis_provider": "existing"}
    by_address = policies_of(**existing, nativelink_redis_address="203.0.113.7:6380")
    assert allowed(by_address, (SCHEDULER, INTERNET, 6380))
    assert allowed(by_address, (DEMAND, INTERNET, 6380))
    assert not allowed(by_address, (SCHEDULER, Pod(address="203.0.113.8"), 6380))
    assert not allowed(by_address, (SCHEDULER, INTERNET, 443))
    by_name = policies_of(**existing, nativelink_redis_address="redis.example.com:6380")
    assert allowed(by_name, (SCHEDULER, INTERNET, 6380))
    assert not allowed(by_name, (SCHEDULER, INTERNET, 443))
    assert not allowed(by_name, (WORKER, INTERNET, 6380))


def test_policies_select_by_role_and_never_by_pool() -> None:
    for policy in MEMORY + SHARED:
        assert "nativelink-gitops/pool" not in str(policy), policy["metadata"]["name"]

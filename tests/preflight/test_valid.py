"""Whatever a sound inventory may hold, nothing is said against it, and no fault is blamed on another cluster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.nativelink.gitops.plugins.plugin_utils import specs, validation, versions
from hypothesis import given, settings
from hypothesis import strategies as st

labels = st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
PROPERTIES = {"cpu_count": "minimum", "OSFamily": "priority", "container-image": "ignore", "pool": "exact"}


def plain_template(value: str) -> str:
    """No more of Jinja than the defaults of these tests need: their templates name a namespace or a class."""
    return "from-a-template"


@pytest.fixture(scope="module", autouse=True)
def nothing_rendered() -> Iterator[None]:
    """Rendering takes longer than all else; tests/render/test_properties.py does it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "object_findings", lambda values: ())
        yield


@st.composite
def resources(draw: st.DrawFn) -> dict[str, Any]:
    cpu, memory = draw(st.integers(1, 32)), draw(st.integers(1, 128))
    shown = draw(st.sampled_from([cpu, str(cpu), f"{cpu * 1000}m"]))
    found = {"requests": {"cpu": shown, "memory": f"{memory}Gi"}}
    if draw(st.booleans()):
        found["limits"] = {"cpu": str(cpu + draw(st.integers(0, 8))), "memory": f"{memory + draw(st.integers(0, 8))}Gi"}
    return found


@st.composite
def pools(draw: st.DrawFn, scaling: str) -> list[dict[str, Any]]:
    found = []
    for name in draw(st.lists(labels, min_size=1, max_size=4, unique=True)):
        least = draw(st.integers(1 if scaling == "hpa" else 0, 50))
        pool: dict[str, Any] = {
            "name": name,
            "min_replicas": least,
            "max_replicas": max(1, least + draw(st.integers(0, 200))),
            "resources": draw(resources()),
            "slots": draw(st.integers(1, 64)),
            "scratch_size": f"{draw(st.integers(20, 500))}Gi",
            "fast_store_size": f"{draw(st.integers(1, 45))}%",
            "longest_action": draw(st.sampled_from(["30m", 1800, "1h", "90"])),
            "platform_properties": draw(
                st.fixed_dictionaries(
                    {}, optional={"cpu_count": st.sampled_from(["4", 8, ["2", "16"]]), "OSFamily": st.just("linux")}
                )
            ),
            "env": draw(
                st.dictionaries(st.from_regex(r"[A-Z_]{1,8}", fullmatch=True), st.text(max_size=5), max_size=2)
            ),
            "node_selector": draw(st.dictionaries(labels, labels, max_size=2)),
            "tolerations": draw(st.sampled_from([[], [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}]])),
        }
        kept = draw(st.sets(st.sampled_from(sorted(set(pool) - {"name", "min_replicas", "max_replicas"}))))
        drop = {"resources", "slots", "longest_action", "platform_properties", "env", "node_selector", "tolerations"}
        found.append({key: value for key, value in pool.items() if key in kept or key not in drop})
    return found


@st.composite
def clusters(draw: st.DrawFn) -> dict[str, Any]:
    shared = draw(st.booleans())
    scaling = draw(st.sampled_from(["keda", "hpa", "none"]))
    edge, provider = draw(
        st.sampled_from([("gateway", "envoy-gateway"), ("ingress", "nginx"), ("none", "none"), ("gateway", "existing")])
    )
    engine = draw(st.sampled_from(["none", "argocd", "flux"]))
    nginx = provider == "nginx"
    tls = draw(st.sampled_from([*([] if nginx else [""]), "edge-tls"]))
    certificates = bool(tls) and provider == "envoy-gateway"
    scp = [] if engine == "flux" else ["git@git.example.com:a/b.git"]
    repository = draw(st.sampled_from(["https://git.example.com/a/b.git", "ssh://git@h:22/a", *scp]))
    return {
        "nativelink_cas_replicas": draw(st.integers(1, 9)),
        "nativelink_cas_volume_size": draw(st.sampled_from(["10Gi", "200Gi", "1.5Ti", 10**12])),
        "nativelink_cas_storage_class": draw(labels),
        "nativelink_cas_store_size": f"{draw(st.integers(1, 80))}%",
        "nativelink_cas_ac_store_size": f"{draw(st.integers(1, 10))}%",
        "nativelink_cas_resources": draw(resources()),
        "nativelink_version": "v1.6.6" if shared else draw(st.sampled_from(["v1.6.6", "v1.3.2"])),
        "nativelink_scheduler_backend": "redis" if shared else "memory",
        "nativelink_scheduler_replicas": draw(st.integers(1, 4)) if shared else 1,
        "nativelink_scheduler_platform_properties": PROPERTIES,
        "nativelink_worker_pools": draw(pools(scaling)),
        "nativelink_scaling": scaling,
        "keda_install": "release" if scaling == "keda" else draw(st.sampled_from(["release", "existing", "none"])),
        "nativelink_edge": edge,
        "ingress_provider": provider,
        "ingress_namespace": "edge-of-ours",
        "nativelink_hostname": draw(st.sampled_from([*([] if nginx else [""]), "builds.example.com", "builds"])),
        "nativelink_edge_tls_secret": tls,
        "nativelink_edge_client_ca_secret": draw(st.sampled_from(["", "clients-ca"])) if certificates else "",
        "nativelink_metrics_namespaces": ["monitoring"] if scaling == "hpa" else [],
        "nativelink_client_peers": draw(st.sampled_from([[], [{"ipBlock": {"cidr": "10.0.0.0/8"}}]])),
        "gitops_provider": engine,
        "gitops_install": draw(st.sampled_from(["release", "existing"])),
        "gitops_namespace": {"argocd": "argocd", "flux": "flux-system", "none": ""}[engine],
        "gitops_repository": repository,
        "gitops_secret_name": "deploy-key" if engine == "flux" and repository.startswith("ssh:") else "",
        "gitops_interval": draw(st.sampled_from(["1m", "1h30m", "500ms", "1.5h"])),
        "gitops_sync_timeout": draw(st.sampled_from(["30s", "30000ms", "10s0.5m", "1.5h"])),
    }


def valued(inventory: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        name: specs.effective(
            {
                "inventory_hostname": name,
                "cluster_kubeconfig": f"/nowhere/{name}",
                "cluster_context": name,
                **variables,
            },
            plain_template,
        )
        for name, variables in inventory.items()
    }


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(labels, clusters(), min_size=1, max_size=4))
def test_a_sound_inventory_has_no_fault(inventory: dict[str, dict[str, Any]]) -> None:
    assert [str(fault) for fault in validation.static_findings(valued(inventory))] == []


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(labels, clusters(), min_size=2, max_size=3),
    st.sampled_from(sorted(specs.options())),
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8), st.lists(st.integers(), max_size=2)),
)
def test_a_wrong_value_never_breaks_the_check_nor_blames_another_cluster(
    inventory: dict[str, dict[str, Any]], name: str, value: object
) -> None:
    first = min(inventory)
    inventory[first][name] = value
    for fault in validation.static_findings(valued(inventory)):
        assert fault.cluster == first
        assert fault.problem
        assert fault.remedy
        assert "\n" not in str(fault)


def notices(**variables: object) -> list[str]:
    """What is said of a cluster that is sound, asks its clients for certificates, and these variables."""
    edge = {"nativelink_edge_tls_secret": "edge-tls", "nativelink_edge_client_ca_secret": "clients-ca"}
    sound = {"nativelink_cas_storage_class": "gp3", **edge}
    return validation.notices(valued({"prod": {**sound, **variables}})["prod"])


def test_a_shared_demand_is_noticed() -> None:
    pair = [{"name": "linux"}, {"name": "arm"}]

    assert notices(nativelink_worker_pools=pair) == [
        "nativelink_worker_pools: linux, arm follow one shared demand, because a scheduler in memory counts only "
        "one queue; set nativelink_scheduler_backend to redis, or make a cluster entry for each pool"
    ]
    assert notices(nativelink_worker_pools=pair, nativelink_scheduler_backend="redis") == []
    assert notices(nativelink_worker_pools=pair, nativelink_scaling="none") == []
    assert notices(nativelink_worker_pools=[{"name": "linux"}, {"name": "arm", "scaling": "none"}]) == []


def test_slots_that_share_little_memory_are_noticed() -> None:
    pool = {"name": "linux", "resources": {"requests": {"cpu": 4}, "limits": {"memory": "2Gi"}}}
    assert notices(nativelink_worker_pools=[pool]) == [
        "nativelink_worker_pools[linux].slots: 4 actions at once share 2Gi of memory, 512Mi each, and one that needs "
        "more may end all of them; lower slots, or raise the memory of resources"
    ]
    assert notices(nativelink_worker_pools=[{**pool, "slots": 2}]) == []


def test_slots_that_are_too_many_for_one_process_are_noticed() -> None:
    pool = {"name": "linux", "resources": {"limits": {"memory": "512Gi"}}}
    assert notices(nativelink_worker_pools=[{**pool, "slots": 65}]) == [
        "nativelink_worker_pools[linux].slots: 65 actions at once keep NativeLink itself busy, so that it may miss its "
        "probes and be restarted; write 64 or less, and more workers"
    ]
    assert notices(nativelink_worker_pools=[{**pool, "slots": 64}]) == []


def test_an_edge_that_asks_nobody_who_he_is_is_noticed() -> None:
    nobody = {"nativelink_edge_client_ca_secret": ""}
    assert notices(**nobody) == [
        "nativelink_edge_client_ca_secret: is empty: whoever reaches the address can use the cache and run commands; "
        "keep the load balancer internal, or let the edge ask for certificates"
    ]
    assert notices(**nobody, nativelink_edge_tls_secret="") == [
        "nativelink_edge_tls_secret: is empty: clients speak plain text, and whoever reaches the address can use the "
        "cache and run commands; name a TLS Secret, and keep the load balancer internal"
    ]
    assert notices(**nobody, nativelink_edge_tls_secret="", nativelink_edge="none") == []
    assert notices() == []


def test_values_that_the_scheduler_forgets_are_noticed() -> None:
    pools = [{"name": "linux", "platform_properties": {"cpu_count": [2, 16], "OSFamily": ["linux"], "pool": "a"}}]
    assert notices(nativelink_worker_pools=pools) == [
        "nativelink_worker_pools[linux].platform_properties.cpu_count: has 2 values, of which NativeLink's scheduler "
        "keeps the last, 16; write one, or make a pool for each"
    ]


def test_a_step_to_zero_before_a_lost_source_is_known_is_noticed() -> None:
    pool = {"name": "linux", "min_replicas": 0}
    assert notices(nativelink_worker_pools=[{**pool, "cooldown_period": 60}]) == [
        "nativelink_worker_pools[linux].cooldown_period: is 60 s: a pool at work may go to zero while its source of "
        "demand is lost, before KEDA is sure of that; write 120 or more"
    ]
    assert notices(nativelink_worker_pools=[pool]) == []
    # Three polls a minute apart.
    (said,) = notices(nativelink_worker_pools=[{**pool, "polling_interval": 60, "cooldown_period": 200}])
    assert said.endswith("write 213 or more")
    assert notices(nativelink_worker_pools=[{**pool, "polling_interval": 60}]) == []
    assert notices(nativelink_worker_pools=[{"name": "linux", "cooldown_period": 60}]) == []
    assert notices(nativelink_worker_pools=[{**pool, "cooldown_period": 60}], nativelink_scaling="none") == []


def test_low_latency_that_nativelink_has_by_itself_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert notices(low_latency_enabled=True) == []
    newer = replace(versions.VERSIONS["v1.6.6"], tcp_nodelay=True)
    monkeypatch.setitem(versions.VERSIONS, "v1.6.6", newer)
    assert notices(low_latency_enabled=True) == [
        "low_latency_enabled: is no longer needed with NativeLink v1.6.6, which sets TCP_NODELAY itself; "
        "take it out: the next run removes what it made"
    ]
    assert notices() == []

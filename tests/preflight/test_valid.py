"""Any valid inventory has no findings, and an error in one cluster causes no finding for another cluster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.nativelink.gitops.plugins.plugin_utils import specs, validation, versions
from ansible_collections.nativelink.gitops.plugins.plugin_utils.validation import formats
from hypothesis import given, settings
from hypothesis import strategies as st

labels = st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
PROPERTIES = {"cpu_count": "minimum", "OSFamily": "priority", "container-image": "ignore", "pool": "exact"}


def plain_template(value: str) -> str:
    """Return a fixed name, because the templates of the defaults here name a namespace or a class."""
    return "from-a-template"


@pytest.fixture(scope="module", autouse=True)
def nothing_rendered() -> Iterator[None]:
    """Skip rendering, which takes longer than everything else. tests/render/test_properties.py renders."""
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
        "nativelink_cas_volume_size": draw(st.sampled_from(["10Gi", "200Gi", "1.5Ti", str(10**12)])),
        "nativelink_cas_storage_class": draw(labels),
        "nativelink_cas_store_size": f"{draw(st.integers(1, 80))}%",
        "nativelink_cas_ac_store_size": f"{draw(st.integers(1, 10))}%",
        "nativelink_cas_resources": draw(resources()),
        "nativelink_version": draw(
            st.sampled_from([name for name, each in versions.VERSIONS.items() if each.redis_backend or not shared])
        ),
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
        **draw(st.sampled_from([{}, MUTUAL_TLS, {**MUTUAL_TLS, "nativelink_mutual_tls_issuer": "our-ca"}])),
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
                "gitops_path": f"clusters/{name}",
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
    """Return the notices of a valid cluster that asks clients for certificates and has these variables."""
    edge = {"nativelink_edge_tls_secret": "edge-tls", "nativelink_edge_client_ca_secret": "clients-ca"}
    sound = {"nativelink_cas_storage_class": "gp3", **edge}
    return validation.notices(valued({"prod": {**sound, **variables}})["prod"])


def test_a_shared_demand_is_noticed() -> None:
    pair = [{"name": "linux"}, {"name": "arm"}]

    assert notices(nativelink_worker_pools=pair) == [
        "nativelink_worker_pools: linux, arm scale with the same demand, because a scheduler in memory has one queue "
        "for all; set nativelink_scheduler_backend to redis, or make a cluster for each pool"
    ]
    assert notices(nativelink_worker_pools=pair, nativelink_scheduler_backend="redis") == []
    assert notices(nativelink_worker_pools=pair, nativelink_scaling="none") == []
    assert notices(nativelink_worker_pools=[{"name": "linux"}, {"name": "arm", "scaling": "none"}]) == []


def test_headroom_that_no_worker_uses_is_noticed() -> None:
    pools = [{"name": "linux", "headroom": 2}]
    assert notices(nativelink_worker_pools=pools, nativelink_scaling="none") == [
        "nativelink_worker_pools[linux].headroom: is 2, but the pool does not scale, so only a worker that is replaced "
        "uses the room; remove it, or set scaling to keda or hpa",
    ]
    assert notices(nativelink_worker_pools=pools) == []
    assert notices(nativelink_worker_pools=[{"name": "linux", "scaling": "none"}]) == []


def test_memory_that_is_not_promised_is_noticed() -> None:
    def uses(request: str, limit: str) -> dict[str, object]:
        return {"requests": {"memory": request}, "limits": {"memory": limit}}

    pool = {"name": "linux", "resources": uses("8Gi", "16Gi")}
    assert notices(nativelink_worker_pools=[pool], nativelink_cas_resources=uses("2Gi", "8Gi")) == [
        "nativelink_cas_resources.requests.memory: is 2Gi, less than the limit (8Gi): a node that is short of "
        "memory first evicts pods that use more than they request; write 8Gi",
        "nativelink_worker_pools[linux].resources.requests.memory: is 8Gi, less than the limit (16Gi): a node "
        "that is short of memory first evicts pods that use more than they request; write 16Gi",
    ]
    same = {"name": "linux", "resources": uses("16Gi", "16Gi")}
    assert notices(nativelink_worker_pools=[same], nativelink_cas_resources=uses("8Gi", "8Gi")) == []
    assert notices() == []


def test_slots_that_share_little_memory_are_noticed() -> None:
    pool = {"name": "linux", "resources": {"requests": {"cpu": 4}, "limits": {"memory": "2Gi"}}}
    assert notices(nativelink_worker_pools=[pool]) == [
        "nativelink_worker_pools[linux].slots: 4 actions at once share 2Gi of memory, 512Mi each, and an action "
        "that needs more may end all of them; lower slots, or raise the memory of resources"
    ]
    assert notices(nativelink_worker_pools=[{**pool, "slots": 2}]) == []


def test_slots_that_are_too_many_for_one_process_are_noticed() -> None:
    pool = {"name": "linux", "resources": {"limits": {"memory": "512Gi"}}}
    assert notices(nativelink_worker_pools=[{**pool, "slots": 65}]) == [
        "nativelink_worker_pools[linux].slots: with 65 actions at once NativeLink may be too busy to answer its "
        "probes, and restart; write 64 or less, and use more workers"
    ]
    assert notices(nativelink_worker_pools=[{**pool, "slots": 64}]) == []


def test_actions_that_can_forge_are_noticed() -> None:
    pools = [{"name": "linux"}, {"name": "tools", "isolation": "none", "persistent_workers": True}]
    assert notices(nativelink_worker_pools=pools, nativelink_scaling="none") == [
        "nativelink_worker_pools[tools].isolation: is none, so each action can write action results for everybody, "
        "act as a worker, and change the inputs of later actions; set isolation to users"
    ]
    assert notices(nativelink_worker_access="network_policy") == [
        "nativelink_worker_access: is network_policy, so each action can write action results for everybody, and act "
        "as a worker; write node, which needs node_agent_guard"
    ]


MUTUAL_TLS = {"nativelink_mutual_tls_secret": "mutual-tls", "nativelink_mutual_tls_expires": "2027-01-31"}


def test_mutual_tls_keeps_actions_away_that_cannot_read_the_key() -> None:
    assert notices(nativelink_worker_access="network_policy", **MUTUAL_TLS) == []
    found = notices(nativelink_worker_pools=[{"name": "linux", "isolation": "none"}], **MUTUAL_TLS)
    assert found[1:] == [
        "nativelink_worker_pools[linux].isolation: is none, so each action can read the key with which its worker "
        "shows that it is one; set isolation to users, or do not rely on nativelink_mutual_tls_secret"
    ]


def test_an_edge_that_does_not_authenticate_clients_is_noticed() -> None:
    anyone = {"nativelink_edge_client_ca_secret": ""}
    assert notices(**anyone) == [
        "nativelink_edge_client_ca_secret: is empty, so anyone who can reach the address can use the cache and run "
        "commands; use an internal load balancer, or set a CA for client certificates"
    ]
    assert notices(**anyone, nativelink_edge_tls_secret="") == [
        "nativelink_edge_tls_secret: is empty, so traffic is not encrypted, and anyone who can reach the address can "
        "use the cache and run commands; write the name of a TLS Secret, and use an internal load balancer"
    ]
    assert notices(**anyone, nativelink_edge_tls_secret="", nativelink_edge="none") == []
    assert notices() == []


def test_values_that_the_scheduler_forgets_are_noticed() -> None:
    pools = [{"name": "linux", "platform_properties": {"cpu_count": [2, 16], "OSFamily": ["linux"], "pool": "a"}}]
    assert notices(nativelink_worker_pools=pools) == [
        "nativelink_worker_pools[linux].platform_properties.cpu_count: has 2 values, but NativeLink's scheduler "
        "keeps only the last one, 16; write one value, or make a pool for each"
    ]


def test_a_step_to_zero_before_a_lost_source_is_known_is_noticed() -> None:
    pool = {"name": "linux", "min_replicas": 0}
    assert notices(nativelink_worker_pools=[{**pool, "cooldown_period": 60}]) == [
        "nativelink_worker_pools[linux].cooldown_period: is 60 s, so if the source of demand fails, a pool at work "
        "may scale to zero before KEDA notices; write 120 or more"
    ]
    assert notices(nativelink_worker_pools=[pool]) == []
    # KEDA notices after three polls, which are a minute apart.
    (notice,) = notices(nativelink_worker_pools=[{**pool, "polling_interval": 60, "cooldown_period": 200}])
    assert notice.endswith("write 213 or more")
    assert notices(nativelink_worker_pools=[{**pool, "polling_interval": 60}]) == []
    assert notices(nativelink_worker_pools=[{"name": "linux", "cooldown_period": 60}]) == []
    assert notices(nativelink_worker_pools=[{**pool, "cooldown_period": 60}], nativelink_scaling="none") == []


def test_low_latency_with_a_nativelink_that_sets_tcp_nodelay_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert notices(node_agent_low_latency=True) == []
    version = specs.defaults()["nativelink_version"]
    newer = replace(versions.VERSIONS[version], tcp_nodelay=True)
    monkeypatch.setitem(versions.VERSIONS, version, newer)
    assert notices(node_agent_low_latency=True) == [
        f"node_agent_low_latency: is no longer needed with NativeLink {version}, which sets TCP_NODELAY itself; "
        "remove it; the next run takes it off the nodes"
    ]
    assert notices() == []


def test_a_pool_that_does_not_scale_may_have_any_maximum() -> None:
    pool = {"name": "linux", "min_replicas": 10, "max_replicas": 5}
    cluster = {"nativelink_cas_storage_class": "gp3", "nativelink_worker_pools": [pool]}

    assert [fault.variable for fault in validation.static_findings(valued({"prod": cluster}))] == [
        "nativelink_worker_pools[linux].min_replicas"
    ]
    cluster["nativelink_scaling"] = "none"
    assert validation.static_findings(valued({"prod": cluster})) == []


def test_a_variable_without_a_prefix_may_be_the_value_of_the_one_with_it() -> None:
    cluster = {"nativelink_cas_storage_class": "gp3", "cas_replicas": 5, "region": "eu"}

    assert [fault.variable for fault in validation.static_findings(valued_with_others(cluster))] == ["cas_replicas"]
    cluster["nativelink_cas_replicas"] = 5
    assert validation.static_findings(valued_with_others(cluster)) == []


def valued_with_others(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {"prod": {**cluster, **valued({"prod": cluster})["prod"]}}


def test_a_cluster_may_share_its_path_with_another_branch() -> None:
    engine = {"gitops_provider": "argocd", "gitops_namespace": "argocd", "gitops_path": "tree"}
    repository = {"gitops_repository": "https://git.example.com/a.git"}
    one = {"nativelink_cas_storage_class": "gp3", **engine, **repository, "gitops_revision": "one"}

    assert len(validation.static_findings(valued({"a": one, "b": one}))) == 2
    assert validation.static_findings(valued({"a": one, "b": {**one, "gitops_revision": "two"}})) == []


@pytest.mark.parametrize("branch", ["main", "HEAD", "feature/x-1", "release-1.2", "ünïcode", "@x"])
def test_a_branch_may_have_any_name_that_git_accepts(branch: str) -> None:
    assert list(formats._branch(branch)) == []


@pytest.mark.parametrize(
    "branch", ["", "@", "-x", "/x", "x/", "a//b", ".a", "a/.b", "a.lock", "a.", "a b", "a~1", "a@{1}"]
)
def test_a_name_that_git_refuses_is_not_a_branch(branch: str) -> None:
    assert len(list(formats._branch(branch))) == 1

"""The trees meet the demands of the real NativeLink. The values come from its runs and its source."""

from __future__ import annotations

import json
from typing import Any

import json5
import pytest
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render
from ansible_collections.nativelink.gitops.plugins.plugin_utils.versions import VERSIONS

from testkit.trees import VERSION, Object, committed, find, objects_of, values_of
from tests.render.test_tree import ALL, container, simple


def configuration(files: dict[str, str], path: str) -> Any:
    return json5.loads(files[path])


def stores(files: dict[str, str], path: str) -> dict[str, Object]:
    return {store["name"]: store for store in configuration(files, path)["stores"]}


def evictions(files: dict[str, str]) -> dict[str, Object]:
    """Return the eviction policies of a CAS pod's own stores."""
    found = stores(files, "cas/cas.json5")
    kept = {"CAS_SLICE": found["CAS_SLICE"]["verify"]["backend"], "AC_SLICE": found["AC_SLICE"]}
    return {name: store["filesystem"]["eviction_policy"] for name, store in kept.items()}


def pool(**more: Any) -> dict[str, str]:
    return render.tree(values_of(nativelink_worker_pools=[{"name": "a", **more}]))


def offered(files: dict[str, str]) -> dict[str, list[str]]:
    (worker,) = configuration(files, "worker/a/worker.json5")["workers"]
    return {name: values["values"] for name, values in worker["local"]["platform_properties"].items()}


def slots(files: dict[str, str]) -> int:
    return int(configuration(files, "worker/a/worker.json5")["workers"][0]["local"]["max_inflight_tasks"])


def shards(files: dict[str, str]) -> dict[str, dict[str, list[Object]]]:
    """Return the shards of both kinds, by file."""
    cas, scheduler = stores(files, "cas/cas.json5"), stores(files, "scheduler/scheduler.json5")
    found = {"cas": (cas["CAS_SHARD"], cas["AC_SHARD"]), "scheduler": (scheduler["CAS"], scheduler["AC_SHARD"])}
    for path in files:
        if path.endswith("/worker.json5"):
            worker = stores(files, path)
            found[path] = (worker["CAS"]["fast_slow"]["slow"], worker["AC"])
    return {name: {"cas": pair[0]["shard"]["stores"], "ac": pair[1]["shard"]["stores"]} for name, pair in found.items()}


@pytest.mark.parametrize("cluster", ALL)
def test_every_shard_has_its_weight(cluster: str) -> None:
    """The binaries of both versions refuse to start without a weight: missing field `weight`."""
    for found in shards(committed(cluster)).values():
        assert {shard["weight"] for kind in found.values() for shard in kind} == {1}


@pytest.mark.parametrize("version", VERSIONS)
def test_all_processes_find_a_key_in_the_same_shard(version: str) -> None:
    pools = [{"name": "one"}, {"name": "two"}]
    files = render.tree(values_of(nativelink_version=version, nativelink_cas_replicas=4, nativelink_worker_pools=pools))
    cas, *others = shards(files).values()
    assert len(others) == 3, "the scheduler and both pools"
    # Workers write results at a port of their own.
    own = [{**each, "ac": json.loads(json.dumps(each["ac"]).replace(":50053", ":50052"))} for each in others]
    assert own == [cas] * 3
    assert [json.dumps(each["ac"]).count(":50053") for each in others] == [0, 4, 4]
    for kind, found in cas.items():
        reached = [shard["store"]["grpc"] for shard in found]
        assert [store["endpoints"] for store in reached] == [
            [{"address": f"grpc://nativelink-cas-{number}.nativelink-cas-headless.nativelink.svc:50052"}]
            for number in range(4)
        ]
        assert {(store["instance_name"], store["store_type"]) for store in reached} == {("slice", kind)}
        # v1.3.2 does not know this field, and would not start.
        batched = version != "v1.3.2" and kind == "cas"
        assert {store.get("experimental_read_batching") == {} for store in reached} == {batched}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_slice_accepts_only_bytes_that_match_their_digest(version: str) -> None:
    """A slice checks bytes from public listeners, the scheduler, and workers, whose actions reach it too."""
    files = render.tree(values_of(nativelink_version=version))
    verified = stores(files, "cas/cas.json5")["CAS_SLICE"]["verify"]
    assert (verified["verify_size"], verified["verify_hash"]) == (True, True)
    assert list(verified["backend"]) == ["filesystem"]
    listeners = {server["name"]: server["services"] for server in configuration(files, "cas/cas.json5")["servers"]}
    for service in ("cas", "bytestream"):
        assert listeners["slice"][service] == [{"instance_name": "slice", "cas_store": "CAS_SLICE"}]
        assert listeners["public"][service] == [{"instance_name": "main", "cas_store": "CAS_SHARD"}]
    assert set(listeners["slice"]) == {"cas", "ac", "bytestream", "capabilities"}


def test_the_scheduler_answers_only_from_complete_results() -> None:
    assert stores(committed("prod"), "scheduler/scheduler.json5")["AC"]["completeness_checking"] == {
        "backend": {"ref_store": {"name": "AC_SHARD"}},
        "cas_store": {"ref_store": {"name": "CAS"}},
    }


def test_the_scheduler_looks_into_the_action_cache_first() -> None:
    (scheduler,) = configuration(committed("prod"), "scheduler/scheduler.json5")["schedulers"]
    assert (scheduler["name"], scheduler["cache_lookup"]["ac_store"]) == ("MAIN", "COUNTED_AC")


def test_open_files_are_as_many_as_the_variable_says() -> None:
    files = render.tree(values_of(nativelink_max_open_files=5000))
    for path in ("cas/cas.json5", "worker/default/worker.json5"):
        assert configuration(files, path)["global"] == {"max_open_files": 5000}
    assert configuration(committed("prod"), "cas/cas.json5")["global"] == {"max_open_files": 65536}


def test_logs_are_json_and_their_level_is_a_variable() -> None:
    def environments(**variables: Any) -> list[dict[str, str]]:
        objects = objects_of(render.tree(values_of(**variables)))
        workloads = (
            ("StatefulSet", "nativelink-cas"),
            ("Deployment", "nativelink-scheduler"),
            ("Deployment", "nativelink-worker-default"),
        )
        found = [container(find(objects, *each))["env"] for each in workloads]
        return [{each["name"]: each.get("value", "") for each in variables} for variables in found]

    assert {(each["NL_LOG"], each["RUST_LOG"]) for each in environments()} == {
        ("json", "info,nativelink::services=warn,nativelink_worker::running_actions_manager=error")
    }
    said = environments(nativelink_log_format="compact", nativelink_log_level="warn,nativelink_store=debug")
    assert {(each["NL_LOG"], each["RUST_LOG"]) for each in said} == {("compact", "warn,nativelink_store=debug")}


def test_a_container_image_is_ignored_and_every_pool_says_what_it_has() -> None:
    files = pool(resources={"requests": {"cpu": "2", "memory": "8Gi"}, "limits": {"cpu": "7500m", "memory": "16Gi"}})
    declared = simple(files)["supported_platform_properties"]
    assert declared["container-image"] == "ignore"
    # The limits: 7.5 CPUs are 7 whole ones, 16 GiB are 16 777 216 KiB.
    # Memory above the request is not promised: a node that is short of it evicts such a worker first.
    assert offered(files) == {"OSFamily": ["Linux"], "cpu_count": ["7"], "memory_kb": ["8388608"]}
    assert slots(files) == 7


def test_a_pool_without_limits_offers_what_it_requests() -> None:
    files = pool(resources={"requests": {"cpu": "500m", "memory": "1Gi"}})
    assert (offered(files)["cpu_count"], offered(files)["memory_kb"], slots(files)) == (["1"], ["1048576"], 1)


def test_a_pool_says_otherwise_and_offers_nothing_undeclared() -> None:
    stated = {"cpu_count": 64, "OSFamily": "linux"}
    files = pool(platform_properties=stated, slots=3)
    assert (offered(files)["cpu_count"], offered(files)["OSFamily"], slots(files)) == (["64"], ["linux"], 3)
    values = values_of(
        nativelink_worker_pools=[{"name": "a"}],
        nativelink_scheduler_platform_properties={"pool": "exact", "cpu_count": "ignore"},
    )
    assert offered(render.tree(values)) == {}


def test_the_twenty_of_the_reference_page_is_a_target_and_not_a_concurrency() -> None:
    files = committed("prod")
    (worker,) = configuration(files, "worker/default/worker.json5")["workers"]
    assert worker["local"]["max_inflight_tasks"] == 8
    scaled = find(objects_of(files), "ScaledObject", "nativelink-worker-default")["spec"]
    assert scaled["advanced"]["scalingModifiers"]["target"] == "20"


def test_a_full_store_makes_little_room_at_once() -> None:
    """A write that finds the store full waits until all of that is deleted."""
    files = render.tree(values_of(nativelink_cas_volume_size="1Gi", nativelink_cas_store_size="400Mi"))
    # A hundredth of 400 MiB; the 8 MiB of larger stores stand in the committed trees.
    assert evictions(files)["CAS_SLICE"]["evict_bytes"] == 4 * 1024**2


def test_a_cas_pod_has_memory_for_the_files_that_it_may_hold() -> None:
    """2 TiB would have inodes for 127 million files, and their index would take 60 GiB."""

    def counts(**variables: Any) -> list[int]:
        files = render.tree(values_of(nativelink_cas_volume_size="2Ti", **variables))
        return [policy["max_count"] for policy in evictions(files).values()]

    # Three quarters of 8 GiB at 512 bytes a file.
    assert sum(counts()) == 8 * 1024**3 * 3 // 4 // 512 == 12_582_912
    assert sum(counts(nativelink_cas_resources={"requests": {"memory": "2Gi"}})) == 2 * 1024**4 * 95 // 100 // 16384


def test_a_fast_store_and_its_copies_leave_a_tenth_of_the_scratch() -> None:
    policy = configuration(committed("prod"), "worker/default/worker.json5")["stores"][0]["fast_slow"]["fast"]
    # 40 % of 100 GiB: twice that, and a tenth for what runs, are less than all.
    assert policy["filesystem"]["eviction_policy"] == {
        "max_bytes": 40 * 1024**3,
        "evict_bytes": 8 * 1024**2,
        "max_count": 100 * 1024**3 * 95 // 100 // 16384 // 2,
    }


@pytest.mark.parametrize(
    ("version", "backend", "expected"),
    [
        (VERSION, "memory", {"worker_match_logging_interval_s": 60, "fallback_match_interval_s": 5}),
        (VERSION, "redis", {"worker_match_logging_interval_s": -1, "fallback_match_interval_s": 1}),
        ("v1.3.2", "memory", {"worker_match_logging_interval_s": 60}),
    ],
)
def test_the_matching_loop_has_the_intervals_of_its_version(
    version: str, backend: str, expected: dict[str, int]
) -> None:
    values = values_of(nativelink_version=version, nativelink_scheduler_backend=backend)
    found = simple(render.tree(values))
    assert {name: value for name, value in found.items() if "_interval_s" in name} == expected
    assert (found["max_job_retries"], found["retain_completed_for_s"]) == (8, 300)


def test_an_action_may_be_an_eternal_test_of_bazel() -> None:
    """An hour is its timeout, and what asks for more than `max_action_timeout_s` is refused (source)."""
    (worker,) = configuration(pool(), "worker/a/worker.json5")["workers"]
    assert worker["local"]["max_action_timeout_s"] == 3600


def test_the_single_pods_leave_a_lost_node_after_ten_seconds() -> None:
    def seconds(name: str, **variables: Any) -> dict[str, int]:
        spec = find(objects_of(render.tree(values_of(**variables))), "Deployment", name)["spec"]["template"]["spec"]
        return {each["key"]: each.get("tolerationSeconds", 0) for each in spec["tolerations"]}

    soon = {"node.kubernetes.io/not-ready": 10, "node.kubernetes.io/unreachable": 10}
    assert seconds("nativelink-scheduler") == seconds("nativelink-collector") == soon
    stated = {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "tolerationSeconds": 600}
    stated["effect"] = "NoExecute"
    assert seconds("nativelink-scheduler", nativelink_scheduler_tolerations=[stated]) == {
        "node.kubernetes.io/unreachable": 600,
        "node.kubernetes.io/not-ready": 10,
    }


def test_a_cooldown_stands_only_where_a_pool_goes_to_zero() -> None:
    """KEDA's webhook warns of one that is not relevant."""

    def cooldown(**more: Any) -> Any:
        return find(objects_of(pool(**more)), "ScaledObject", "nativelink-worker-a")["spec"].get("cooldownPeriod")

    assert (cooldown(min_replicas=1), cooldown(min_replicas=0)) == (None, 300)


def test_cas_pods_need_or_prefer_different_nodes() -> None:
    def spread(**variables: Any) -> str:
        cas = find(objects_of(render.tree(values_of(**variables))), "StatefulSet", "nativelink-cas")
        constraints = cas["spec"]["template"]["spec"]["topologySpreadConstraints"]
        (found,) = [each for each in constraints if each["topologyKey"] == "kubernetes.io/hostname"]
        return str(found["whenUnsatisfiable"])

    assert spread() == "DoNotSchedule"
    assert spread(nativelink_cas_node_spread="preferred") == "ScheduleAnyway"


def test_the_default_image_has_a_compiler() -> None:
    image = container(find(objects_of(pool()), "Deployment", "nativelink-worker-a"))["image"]
    assert image == "docker.io/library/buildpack-deps:bookworm"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_dollar_in_a_pool_is_a_plain_character(version: str) -> None:
    """Both versions expand $NAME and ${NAME}, and refuse to start if it is not set. Kubernetes expands $(NAME)."""
    values = {"name": "a", "env": {"TEXT": "a$b ${HOME} $(POD_NAME) $$"}, "platform_properties": {"pool": "a$b"}}
    pools = [{**values, "persistent_workers": True}]
    files = render.tree(values_of(nativelink_version=version, nativelink_worker_pools=pools))
    escaped = "a$$b $${HOME} $$(POD_NAME) $$$$"

    (worker,) = configuration(files, "worker/a/worker.json5")["workers"]
    assert worker["local"]["additional_environment"] == {"TEXT": {"value": escaped}}
    assert offered(files)["pool"] == ["a$$b"]
    # A persistent worker inherits the environment of the container.
    workers = find(objects_of(files), "Deployment", "nativelink-worker-a")
    assert {"name": "TEXT", "value": escaped} in container(workers)["env"]

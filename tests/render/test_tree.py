"""The content of the trees. The expected values are written by hand, from the reference page and the facts."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import json5
import pytest
import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render
from ansible_collections.nativelink.gitops.plugins.plugin_utils.context import PORTS
from ansible_collections.nativelink.gitops.plugins.plugin_utils.versions import VERSIONS

from testkit.playbooks import run_playbook
from testkit.trees import CLUSTERS, ROOT, VERSION, Object, committed, find, objects_of, values_of

GIB = 1024**3
ALL = ("local", "dev", "staging", "prod")
WORKLOADS = ("DaemonSet", "Deployment", "StatefulSet")


def simple(files: dict[str, str]) -> Object:
    """Return the scheduler that matches, which is inside of the one that looks into the action cache first."""
    (scheduler,) = json5.loads(files["scheduler/scheduler.json5"])["schedulers"]
    return dict(scheduler["cache_lookup"]["scheduler"]["simple"])


def container(workload: Object) -> Object:
    (only,) = workload["spec"]["template"]["spec"]["containers"]
    return only


@pytest.mark.parametrize("inventory", ["local", "reference"])
def test_the_committed_trees_are_what_the_inventories_render(inventory: str) -> None:
    done = run_playbook("render", f"inventories/{inventory}", "--check", "--diff")
    assert done.status == 0, done.output
    assert done.recap.keys() == ({"local"} if inventory == "local" else {"dev", "staging", "prod"})
    assert done.changed == 0, f"run `make render` and commit:\n{done.output}"


def test_prod_has_the_cas_of_the_reference_page() -> None:
    cas = find(objects_of(committed("prod")), "StatefulSet", "nativelink-cas")
    assert cas["spec"]["replicas"] == 3
    (claim,) = cas["spec"]["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == "data"
    assert claim["spec"] == {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "gp3",
        "resources": {"requests": {"storage": "200Gi"}},
    }
    assert container(cas)["resources"] == {
        "requests": {"cpu": "1", "memory": "8Gi", "ephemeral-storage": "64Mi"},
        "limits": {"cpu": "4", "memory": "8Gi", "ephemeral-storage": "1Gi"},
    }
    assert container(cas)["args"] == ["/config/cas.json5"]
    assert container(cas)["livenessProbe"]["periodSeconds"] == 10
    assert container(cas)["image"] == f"ghcr.io/tracemachina/nativelink:{VERSION}"
    assert {"containerPort": 50051, "name": "cas"} in container(cas)["ports"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container(cas)["volumeMounts"]}
    assert mounts == {"data": "/var/lib/nativelink", "config": "/config"}


def test_prod_has_the_scheduler_and_the_workers_of_the_reference_page() -> None:
    objects = objects_of(committed("prod"))
    assert find(objects, "Deployment", "nativelink-scheduler")["spec"]["replicas"] == 1
    worker = find(objects, "Deployment", "nativelink-worker-default")
    assert "replicas" not in worker["spec"]
    assert container(worker)["resources"] == {
        "requests": {"cpu": "4", "memory": "16Gi", "ephemeral-storage": "100Gi"},
        "limits": {"cpu": "8", "memory": "16Gi", "ephemeral-storage": "110Gi"},
    }
    scaled = find(objects, "ScaledObject", "nativelink-worker-default")["spec"]
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (4, 200)
    assert scaled["scaleTargetRef"]["name"] == "nativelink-worker-default"
    assert scaled["advanced"]["scalingModifiers"] == {
        "formula": "queued + executing",
        "metricType": "AverageValue",
        "target": "20",
        "activationTarget": "0",
    }
    service = find(objects, "Service", "nativelink-cas")["spec"]
    assert [(port["port"], port["protocol"]) for port in service["ports"]] == [(50051, "TCP")]
    assert "clusterIP" not in service


def test_an_hpa_has_the_values_of_the_reference_page() -> None:
    pools = [{"name": "default", "target": 20}]
    objects = objects_of(render.tree(values_of(nativelink_scaling="hpa", nativelink_worker_pools=pools)))
    hpa = find(objects, "HorizontalPodAutoscaler", "nativelink-worker-default")["spec"]
    assert (hpa["minReplicas"], hpa["maxReplicas"]) == (4, 200)
    assert hpa["metrics"] == [
        {
            "type": "External",
            "external": {
                "metric": {"name": "nativelink_scheduler_queue_depth"},
                "target": {"type": "AverageValue", "averageValue": "20"},
            },
        }
    ]
    assert not [item for item in objects if item["kind"] == "ScaledObject"]


def test_prod_configurations() -> None:
    files = committed("prod")
    cas = json5.loads(files["cas/cas.json5"])
    stores = {store["name"]: store for store in cas["stores"]}
    kept = stores["CAS_SLICE"]["verify"]["backend"]["filesystem"]
    assert kept["eviction_policy"]["max_bytes"] == 160 * GIB  # 80 % of 200Gi
    assert stores["AC_SLICE"]["filesystem"]["eviction_policy"]["max_bytes"] == 10 * GIB  # 5 %
    for shard, kind in (("CAS_SHARD", "cas"), ("AC_SHARD", "ac")):
        grpc = [part["store"]["grpc"] for part in stores[shard]["shard"]["stores"]]
        assert [store["endpoints"] for store in grpc] == [
            [{"address": f"grpc://nativelink-cas-{index}.nativelink-cas-headless.nativelink.svc:50052"}]
            for index in range(3)
        ]
        assert {(store["instance_name"], store["store_type"]) for store in grpc} == {("slice", kind)}
    assert stores["AC_COMPLETE"]["completeness_checking"] == {
        "backend": {"ref_store": {"name": "AC_SHARD"}},
        "cas_store": {"ref_store": {"name": "CAS_SHARD"}},
    }
    listeners = {server["name"]: server for server in cas["servers"]}
    assert listeners["slice"]["services"]["cas"] == [{"instance_name": "slice", "cas_store": "COUNTED_CAS_SLICE"}]
    results = {name: listener["services"]["ac"][0] for name, listener in listeners.items() if name != "health"}
    assert results == {
        "public": {"instance_name": "main", "ac_store": "COUNTED_AC_COMPLETE", "read_only": True},
        "slice": {"instance_name": "slice", "ac_store": "COUNTED_AC_SLICE", "read_only": True},
        "writers": {"instance_name": "slice", "ac_store": "COUNTED_AC_SLICE"},
    }
    assert listeners["writers"]["listener"]["http"]["socket_address"] == "0.0.0.0:50053"
    assert "cas" not in listeners["writers"]["services"]
    (client, *_) = json5.loads(files["scheduler/scheduler.json5"])["servers"]
    assert client["services"]["ac"] == [{"instance_name": "main", "ac_store": "AC", "read_only": True}]

    scheduler = simple(files)
    assert scheduler["worker_timeout_s"] == 60
    assert "experimental_backend" not in scheduler
    # The longest action of any pool (1 h), its upload (10 m) and a margin.
    assert scheduler["max_action_executing_timeout_s"] > 60 * 60 + 10 * 60

    settings = json5.loads(files["worker/default/worker.json5"])
    (results,) = (store["shard"]["stores"] for store in settings["stores"] if store["name"] == "AC")
    assert [store["store"]["grpc"]["endpoints"][0]["address"] for store in results] == [
        f"grpc://nativelink-cas-{index}.nativelink-cas-headless.nativelink.svc:50053" for index in range(3)
    ]
    (worker,) = settings["workers"]
    local = worker["local"]
    assert local["entrypoint"] == "/isolation/${ARCHITECTURE}/action"
    assert (local["max_inflight_tasks"], local["max_action_timeout_s"], local["max_upload_timeout_s"]) == (
        8,
        3600,
        600,
    )
    assert local["name"] == "${POD_NAME}"
    assert local["experimental_precondition_script"] == "/config/precondition.sh"
    assert local["platform_properties"] == {
        "OSFamily": {"values": ["Linux"]},
        "cpu_count": {"values": ["8"]},
        "memory_kb": {"values": ["16777216"]},
        "pool": {"values": ["default"]},
    }


def test_the_documented_bazelrc_finds_a_worker_where_the_inventory_names_no_pools() -> None:
    assert "build --remote_default_exec_properties=pool=default " in (ROOT / "docs/how-to.md").read_text()
    (worker,) = json5.loads(render.tree(values_of())["worker/default/worker.json5"])["workers"]
    assert worker["local"]["platform_properties"]["pool"] == {"values": ["default"]}


def test_the_scheduler_waits_longer_than_the_longest_action_of_any_pool() -> None:
    pools = [{"name": "short", "longest_action": 60}, {"name": "long", "longest_action": "2h"}]
    files = render.tree(values_of(nativelink_scheduler_backend="redis", nativelink_worker_pools=pools))
    assert simple(files)["max_action_executing_timeout_s"] > 7200 + 600
    graces = {
        name: find(objects_of(files), "Deployment", f"nativelink-worker-{name}")["spec"]["template"]["spec"][
            "terminationGracePeriodSeconds"
        ]
        for name in ("short", "long")
    }
    assert graces == {"short": 960, "long": 8100}  # the action, 600 s of upload, 300 s of margin


def test_a_scheduler_in_memory_is_recreated_and_one_on_redis_rolls() -> None:
    memory = find(objects_of(render.tree(values_of())), "Deployment", "nativelink-scheduler")["spec"]
    assert (memory["replicas"], memory["strategy"]) == (1, {"type": "Recreate"})
    redis = values_of(nativelink_scheduler_backend="redis", nativelink_scheduler_replicas=2)
    rolling = find(objects_of(render.tree(redis)), "Deployment", "nativelink-scheduler")["spec"]
    assert (rolling["replicas"], rolling["strategy"]["type"]) == (2, "RollingUpdate")


def test_the_redis_password_comes_from_the_secret_and_is_nowhere_else() -> None:
    files = committed("staging")
    assert not [item for item in objects_of(files) if item["kind"] == "Secret"]
    stores = {store["name"]: store for store in json5.loads(files["scheduler/scheduler.json5"])["stores"]}
    assert stores["QUEUE"]["redis_store"] == {
        "addresses": ["redis://:${REDIS_PASSWORD}@nativelink-redis:6379"],
        "mode": "standard",
        "experimental_pub_sub_channel": "nativelink",
        "retry": {"max_retries": 8},
    }
    secret = {"secretKeyRef": {"name": "nativelink-redis", "key": "password"}}
    objects = objects_of(files)
    for kind, name in (
        ("Deployment", "nativelink-scheduler"),
        ("StatefulSet", "nativelink-redis"),
        ("Deployment", "nativelink-demand"),
    ):
        environment = {item["name"]: item for item in container(find(objects, kind, name))["env"]}
        assert environment["REDIS_PASSWORD"]["valueFrom"] == secret


def test_an_existing_redis_without_a_password() -> None:
    values = values_of(
        nativelink_scheduler_backend="redis",
        nativelink_redis_provider="existing",
        nativelink_redis_address="10.1.2.3:6380",
        nativelink_redis_secret_name="",
    )
    files = render.tree(values)
    stores = {store["name"]: store for store in json5.loads(files["scheduler/scheduler.json5"])["stores"]}
    assert stores["QUEUE"]["redis_store"]["addresses"] == ["redis://10.1.2.3:6380"]
    assert not [path for path in files if "redis" in path]
    (scheduler,) = find(objects_of(files), "Deployment", "nativelink-scheduler")["spec"]["template"]["spec"][
        "containers"
    ]
    assert [variable["name"] for variable in scheduler["env"] if "valueFrom" in variable] == ["POD_IPS"]
    assert "-h 10.1.2.3 -p 6380 " in files["scheduler/guard.sh"]


def test_no_client_reaches_a_scheduler_on_redis_before_it_matches() -> None:
    files = committed("staging")
    pod = find(objects_of(files), "Deployment", "nativelink-scheduler")["spec"]["template"]["spec"]
    (scheduler,) = pod["containers"]
    # The script needs the programs of this image. NativeLink comes from the image that is made for copying it.
    assert scheduler["image"] == "docker.io/redis/redis-stack-server:7.4.0-v8"
    assert scheduler["command"] == ["/config/guard.sh"]
    (binary,) = pod["initContainers"]
    assert (binary["image"], binary["args"]) == (
        f"ghcr.io/tracemachina/nativelink-worker-init:{VERSION}",
        ["/shared/nativelink"],
    )
    assert scheduler["startupProbe"]["exec"]["command"] == ["test", "-e", "/guard/matching"]
    assert "-h nativelink-redis -p 6379 " in files["scheduler/guard.sh"]
    # A matching pass runs each second, and its commands are those that the script looks for.
    settings = simple(files)
    assert (settings["fallback_match_interval_s"], settings["worker_match_logging_interval_s"]) == (1, -1)
    assert settings["experimental_backend"] == {"redis": {"redis_store": "QUEUE"}}
    memory = find(objects_of(committed("prod")), "Deployment", "nativelink-scheduler")["spec"]
    assert memory["replicas"] == 1
    assert container({"spec": memory})["image"] == f"ghcr.io/tracemachina/nativelink:{VERSION}"
    assert "initContainers" not in memory["template"]["spec"]


def test_each_version_gets_its_own_names_of_fields() -> None:
    old, new = (
        json5.loads(render.tree(values_of(nativelink_version=version))["worker/default/worker.json5"])["workers"][0][
            "local"
        ]
        for version in ("v1.3.2", VERSION)
    )
    assert (old["max_action_timeout"], old["max_upload_timeout"]) == (3600, 600)
    assert (new["max_action_timeout_s"], new["max_upload_timeout_s"]) == (3600, 600)


@pytest.mark.parametrize("version", VERSIONS)
def test_configurations_pass_the_schema_of_their_version(
    version: str, accepts: Callable[[str, str], list[str]]
) -> None:
    pool = {
        "name": "all",
        "platform_properties": {"pool": ["a", "b"], "cpu_count": 8},
        "env": {"TMPDIR": "/scratch", "FLAG": True},
        "persistent_workers": True,
    }
    backend = "redis" if VERSIONS[version].redis_backend else "memory"
    values = values_of(nativelink_version=version, nativelink_scheduler_backend=backend, nativelink_worker_pools=[pool])
    configurations = {path: text for path, text in render.tree(values).items() if path.endswith(".json5")}
    assert sorted(configurations) == ["cas/cas.json5", "scheduler/scheduler.json5", "worker/all/worker.json5"]
    assert {path: accepts(version, text) for path, text in configurations.items()} == {
        path: [] for path in configurations
    }
    # The counter-run: a version with other names refuses them.
    names = VERSIONS[version].max_action_timeout
    other = next(each for each, found in VERSIONS.items() if found.max_action_timeout != names)
    assert accepts(other, configurations["worker/all/worker.json5"])


def test_committed_configurations_pass_the_schema(accepts: Callable[[str, str], list[str]]) -> None:
    found = sorted(CLUSTERS.glob("*/rendered/**/*.json5"))
    assert len(found) == 13  # three a cluster, and one more for staging's second pool
    assert {str(path): accepts(VERSION, path.read_text()) for path in found} == {str(path): [] for path in found}


def test_persistent_workers_are_offered_only_where_a_pool_asks() -> None:
    def declared(**pool: Any) -> tuple[Any, Any]:
        files = render.tree(values_of(nativelink_worker_pools=[{"name": "a", **pool}]))
        (worker,) = json5.loads(files["worker/a/worker.json5"])["workers"]
        return simple(files)["supported_platform_properties"], worker["local"]["platform_properties"]

    properties, offered = declared(persistent_workers=True)
    assert properties["supports-workers"] == "exact"
    assert offered["supports-workers"] == {"values": ["1"]}
    # It is declared all the same, because v1.6.6 runs an action with an undeclared property on any worker.
    properties, offered = declared()
    assert (properties["supports-workers"], properties["requires-worker-protocol"]) == ("exact", "ignore")
    assert "supports-workers" not in offered


def test_a_persistent_worker_inherits_the_pools_environment() -> None:
    def environment(**pool: Any) -> dict[str, str]:
        pools = [{"name": "a", "env": {"LANG": "C.UTF-8"}, **pool}]
        worker = find(
            objects_of(render.tree(values_of(nativelink_worker_pools=pools))), "Deployment", "nativelink-worker-a"
        )
        return {each["name"]: each.get("value", "") for each in container(worker)["env"]}

    assert environment(persistent_workers=True)["LANG"] == "C.UTF-8"
    assert "LANG" not in environment()


def test_a_fixed_pool_has_replicas_and_no_autoscaler() -> None:
    pools = [{"name": "fixed", "scaling": "none", "min_replicas": 7}, {"name": "scaled"}]
    objects = objects_of(render.tree(values_of(nativelink_worker_pools=pools)))
    assert find(objects, "Deployment", "nativelink-worker-fixed")["spec"]["replicas"] == 7
    assert "replicas" not in find(objects, "Deployment", "nativelink-worker-scaled")["spec"]
    assert [item["metadata"]["name"] for item in objects if item["kind"] == "ScaledObject"] == [
        "nativelink-worker-scaled"
    ]


def test_losing_the_metric_never_removes_a_worker() -> None:
    pools = [{"name": "zero", "min_replicas": 0}, {"name": "some", "min_replicas": 6}]
    objects = objects_of(render.tree(values_of(nativelink_worker_pools=pools)))
    fallbacks = {
        name: find(objects, "ScaledObject", f"nativelink-worker-{name}")["spec"]["fallback"]
        for name in ("zero", "some")
    }
    assert {fallback["behavior"] for fallback in fallbacks.values()} == {"currentReplicasIfHigher"}
    assert (fallbacks["zero"]["replicas"], fallbacks["some"]["replicas"]) == (1, 6)  # 0 would mean zero


def test_a_pool_scales_up_in_one_step() -> None:
    scaled = find(objects_of(render.tree(values_of())), "ScaledObject", "nativelink-worker-default")["spec"]
    behavior = scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleUp"]["stabilizationWindowSeconds"] == 0
    assert {"type": "Percent", "value": 10000, "periodSeconds": 15} in behavior["scaleUp"]["policies"]
    assert {"type": "Pods", "value": 200, "periodSeconds": 15} in behavior["scaleUp"]["policies"]


COLLECTOR = "monitoring/collector.yaml"
# NativeLink sends metrics once a year, no traces, and no logs, so that it never tries localhost:4317.
SILENT = {
    "OTEL_METRIC_EXPORT_INTERVAL": "31536000000",
    "OTEL_TRACES_SAMPLER": "always_off",
    "OTEL_BLRP_MAX_QUEUE_SIZE": "0",
}


def telemetry(objects: list[Object]) -> dict[str, dict[str, str]]:
    """Return the OTEL variables of each workload of NativeLink."""
    found = {}
    for kind, name in (
        ("StatefulSet", "nativelink-cas"),
        ("Deployment", "nativelink-scheduler"),
        ("Deployment", "nativelink-worker-default"),
    ):
        pod = find(objects, kind, name)["spec"]["template"]["spec"]["containers"][0]
        found[name] = {each["name"]: each["value"] for each in pod["env"] if each["name"].startswith("OTEL_")}
    return found


def test_only_the_scheduler_sends_metrics_by_default() -> None:
    assert telemetry(objects_of(render.tree(values_of()))) == {
        "nativelink-cas": SILENT,
        "nativelink-worker-default": SILENT,
        "nativelink-scheduler": {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://nativelink-collector.nativelink.svc:4317",
            "OTEL_METRIC_EXPORT_INTERVAL": "1000",
            "OTEL_RESOURCE_ATTRIBUTES": "k8s.pod.name=$(POD_NAME)",
            "OTEL_TRACES_SAMPLER": "always_off",
            "OTEL_BLRP_MAX_QUEUE_SIZE": "0",
        },
    }


def test_without_metrics_no_workload_sends_and_there_is_no_collector() -> None:
    silent = values_of(nativelink_metrics=[], nativelink_scaling="none", nativelink_prometheus="bundled")
    files = render.tree(silent)
    assert set(map(str, telemetry(objects_of(files)).values())) == {str(SILENT)}
    assert not [path for path in files if "collector" in path]
    assert "cache_metrics" not in "".join(text for path, text in files.items() if path.endswith(".json5"))
    # On Redis nothing but a Prometheus would read them.
    unread = render.tree(values_of(nativelink_scheduler_backend="redis"))
    assert set(map(str, telemetry(objects_of(unread)).values())) == {str(SILENT)}


def test_all_workloads_send_metrics_and_traces_to_ports_of_their_own() -> None:
    values = values_of(
        nativelink_metrics=["worker", "cas", "scheduler"],
        nativelink_prometheus="bundled",
        nativelink_traces_endpoint="https://traces.example.com:4317",
        nativelink_traces_percent=0.5,
    )
    files = render.tree(values)
    sent = telemetry(objects_of(files))
    assert {name: each["OTEL_EXPORTER_OTLP_ENDPOINT"] for name, each in sent.items()} == {
        "nativelink-scheduler": "http://nativelink-collector.nativelink.svc:4317",
        "nativelink-cas": "http://nativelink-collector.nativelink.svc:14317",
        "nativelink-worker-default": "http://nativelink-collector-workers.nativelink.svc:24317",
    }
    assert sent["nativelink-worker-default"] == {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://nativelink-collector-workers.nativelink.svc:24317",
        "OTEL_METRIC_EXPORT_INTERVAL": "15000",
        "OTEL_RESOURCE_ATTRIBUTES": "k8s.pod.name=$(POD_NAME),nativelink.pool=default",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.005",
        "OTEL_BLRP_MAX_QUEUE_SIZE": "0",
    }
    collector, workers = (yaml.safe_load(files[file]) for file in (COLLECTOR, "monitoring/collector-workers.yaml"))
    for config, receivers in ((collector, ["otlp/scheduler", "otlp/cas"]), (workers, ["otlp/worker"])):
        assert config["exporters"]["otlp_grpc"] == {"endpoint": "traces.example.com:4317", "tls": {"insecure": False}}
        assert config["service"]["pipelines"]["traces"]["receivers"] == receivers
        assert config["service"]["pipelines"]["traces"]["exporters"] == ["otlp_grpc"]
        assert list(config["receivers"]) == receivers
    # The demand comes from the scheduler's port only, and workers do not reach the process.
    assert collector["service"]["pipelines"]["metrics/demand"]["receivers"] == ["otlp/scheduler"]
    assert "prometheus/demand" not in workers["exporters"]


def test_a_collector_refuses_data_before_it_is_out_of_memory() -> None:
    files = render.tree(
        values_of(
            nativelink_metrics=["worker", "cas", "scheduler"],
            nativelink_prometheus="bundled",
            nativelink_traces_endpoint="https://traces.example.com:4317",
        )
    )
    for name, pipelines in (("collector", 4), ("collector-workers", 2)):
        config = yaml.safe_load(files[f"monitoring/{name}.yaml"])
        limiter = config["processors"]["memory_limiter"]
        assert 0 < limiter["spike_limit_percentage"] < limiter["limit_percentage"] < 100
        firsts = [pipeline["processors"][0] for pipeline in config["service"]["pipelines"].values()]
        assert firsts == ["memory_limiter"] * pipelines
        (only,) = find(objects_of(files), "Deployment", f"nativelink-{name}")["spec"]["template"]["spec"]["containers"]
        assert only["resources"]["limits"]["memory"] == "512Mi"
        assert only["env"] == [{"name": "GOMEMLIMIT", "value": "384MiB"}]


def test_a_wrapper_counts_what_clients_and_shards_ask_the_cas() -> None:
    config = json5.loads(render.tree(values_of(nativelink_metrics=["scheduler", "cas"]))["cas/cas.json5"])
    counted = {
        each["name"]: (each["cache_metrics"]["cache_type"], each["cache_metrics"]["backend"]["ref_store"]["name"])
        for each in config["stores"]
        if "cache_metrics" in each
    }
    assert counted == {
        "COUNTED_CAS_SHARD": ("cas", "CAS_SHARD"),
        "COUNTED_AC_COMPLETE": ("ac", "AC_COMPLETE"),
        "COUNTED_CAS_SLICE": ("cas_slice", "CAS_SLICE"),
        "COUNTED_AC_SLICE": ("ac_slice", "AC_SLICE"),
    }
    served = {server["name"]: server["services"] for server in config["servers"]}
    assert [served["public"][of][0]["cas_store"] for of in ("cas", "bytestream")] == ["COUNTED_CAS_SHARD"] * 2
    assert served["public"]["ac"][0]["ac_store"] == "COUNTED_AC_COMPLETE"
    assert [served["slice"][of][0]["cas_store"] for of in ("cas", "bytestream")] == ["COUNTED_CAS_SLICE"] * 2
    assert served["slice"]["ac"][0]["ac_store"] == "COUNTED_AC_SLICE"
    assert "COUNTED" not in render.tree(values_of())["cas/cas.json5"]


def test_demand_comes_from_the_collector_or_by_pool_from_redis() -> None:
    memory = find(objects_of(render.tree(values_of())), "ScaledObject", "nativelink-worker-default")["spec"]["triggers"]
    assert [
        (trigger["name"], trigger["metadata"]["url"], trigger["metadata"]["valueLocation"]) for trigger in memory
    ] == [
        (
            stage,
            "http://nativelink-collector.nativelink.svc:9464/metrics",
            f'nativelink_execution_active_count{{execution_stage="{stage}"}}',
        )
        for stage in ("queued", "executing")
    ]
    redis = find(objects_of(committed("staging")), "ScaledObject", "nativelink-worker-large")["spec"]["triggers"]
    assert [(trigger["metadata"]["url"], trigger["metadata"]["valueLocation"]) for trigger in redis] == [
        ("http://nativelink-demand.nativelink.svc:9121/metrics", f'redis_script_values{{key="large:{stage}"}}')
        for stage in ("queued", "executing")
    ]


def scaled(**pool: object) -> Object:
    """Return the ScaledObject of a pool, on the bundled Prometheus."""
    values = values_of(nativelink_worker_pools=[{"name": "a", **pool}], nativelink_prometheus="bundled")
    return find(objects_of(render.tree(values)), "ScaledObject", "nativelink-worker-a")


def test_a_pool_follows_a_query_of_prometheus() -> None:
    spec = scaled(query='nativelink_scheduler_queue_depth{pool="a"} or "', slots=3)["spec"]
    assert spec["triggers"] == [
        {
            "type": "prometheus",
            "metadata": {
                "serverAddress": "http://nativelink-prometheus.nativelink.svc:9090",
                "query": 'nativelink_scheduler_queue_depth{pool="a"} or "',
                "threshold": "3",
                "ignoreNullValues": "false",
            },
        }
    ]
    assert "scalingModifiers" not in spec["advanced"]
    own = values_of(
        nativelink_worker_pools=[{"name": "a", "query": "up"}],
        nativelink_prometheus_address="https://prometheus.example.com",
    )
    (trigger,) = find(objects_of(render.tree(own)), "ScaledObject", "nativelink-worker-a")["spec"]["triggers"]
    assert trigger["metadata"]["serverAddress"] == "https://prometheus.example.com"


def test_a_paused_pool() -> None:
    assert scaled(paused=True)["metadata"]["annotations"] == {"autoscaling.keda.sh/paused": "true"}
    # The annotation is absent, not "false", so that a pool that is paused by hand stays paused.
    assert "annotations" not in scaled()["metadata"]


def test_ten_seconds_of_polls_without_an_answer_are_a_lost_source() -> None:
    found = {each: scaled(polling_interval=each)["spec"]["fallback"]["failureThreshold"] for each in (1, 5, 30)}
    assert found == {1: 10, 5: 3, 30: 3}


def test_the_bundled_prometheus() -> None:
    files = render.tree(values_of(nativelink_prometheus="bundled", nativelink_scheduler_backend="redis"))
    own = {"cluster": "test", "namespace": "nativelink"}
    assert scraped(files) == {
        "nativelink-demand": ("1s", [{"targets": ["nativelink-demand:9121"], "labels": own}]),
        "nativelink-reported": (None, [{"targets": ["nativelink-collector:9465"], "labels": own}]),
    }
    (group,) = yaml.safe_load(files["monitoring/rules.yaml"])["groups"]
    assert group["interval"] == "1s"
    assert [rule["record"] for rule in group["rules"]] == ["nativelink_scheduler_queue_depth"]
    deployment = find(objects_of(files), "Deployment", "nativelink-prometheus")
    assert container(deployment)["image"] == "quay.io/prometheus/prometheus:v3.16.0"
    # With a scheduler in memory, the collector already has the series.
    memory = render.tree(values_of(nativelink_prometheus="bundled"))
    assert "monitoring/rules.yaml" not in memory
    assert scraped(memory) == {
        "nativelink-collector": ("1s", [{"targets": ["nativelink-collector:9464"], "labels": own}]),
        "nativelink-reported": (None, [{"targets": ["nativelink-collector:9465"], "labels": own}]),
    }
    both = {"nativelink_metrics": ["scheduler", "worker"], "nativelink_prometheus": "bundled"}
    assert scraped(render.tree(values_of(**both))) == scraped(memory) | {
        "nativelink-workers": (None, [{"targets": ["nativelink-collector-workers:9465"], "labels": own}]),
    }
    # It asks no API server, so it has no token.
    pod = find(objects_of(memory), "Deployment", "nativelink-prometheus")["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False


def scraped(files: dict[str, str]) -> dict[str, tuple[str | None, list[Object]]]:
    """Return the interval and the static targets of each job of the bundled Prometheus."""
    jobs = yaml.safe_load(files["monitoring/prometheus.yaml"])["scrape_configs"]
    return {job["job_name"]: (job.get("scrape_interval"), job["static_configs"]) for job in jobs}


OTHERS = {
    "nativelink_prometheus_scrapes": ["edge", "keda", "gitops", "cluster"],
    "ingress_provider": "envoy-gateway",
    "ingress_namespace": "envoy-gateway-system",
    "keda_namespace": "keda",
    "gitops_provider": "flux",
    "gitops_namespace": "flux-system",
}


def test_the_bundled_prometheus_scrapes_others_by_the_api() -> None:
    files = render.tree(values_of(nativelink_prometheus="bundled", **OTHERS))
    jobs = {job["job_name"]: job for job in yaml.safe_load(files["monitoring/prometheus.yaml"])["scrape_configs"]}
    found = {}
    for name, job in jobs.items():
        for place in job.get("kubernetes_sd_configs", ()):
            if place["role"] == "pod":
                (address,) = [each for each in job["relabel_configs"] if each["target_label"] == "__address__"]
                path, port = job["metrics_path"], address["replacement"].rpartition(":")[2]
                found[name] = (place["namespaces"]["names"], place["selectors"][0]["label"], port, path)
    owner = "gateway.envoyproxy.io/owning-gateway"
    gateway = f"{owner}-name=nativelink,{owner}-namespace=nativelink"
    assert found == {
        "nativelink-edge": (["envoy-gateway-system"], gateway, "19001", "/stats/prometheus"),
        "nativelink-keda": (["keda"], "app=keda-operator", "8080", "/metrics"),
        "nativelink-gitops": (["flux-system"], "app in (kustomize-controller,source-controller)", "8080", "/metrics"),
        "nativelink-kube-state-metrics": (
            ["kube-system"],
            "app.kubernetes.io/name=kube-state-metrics",
            "8080",
            "/metrics",
        ),
    }
    kubelets = [job["metrics_path"] for name, job in jobs.items() if name.startswith("nativelink-kubelet")]
    assert kubelets == ["/metrics", "/metrics/cadvisor"]
    pod = find(objects_of(files), "Deployment", "nativelink-prometheus")["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is True
    argocd = {**OTHERS, "gitops_provider": "argocd", "gitops_namespace": "argocd"}
    text = render.tree(values_of(nativelink_prometheus="bundled", **argocd))["monitoring/prometheus.yaml"]
    assert 'label: "app.kubernetes.io/name=argocd-application-controller"' in text
    assert "replacement: $1:8082" in text


def test_a_prometheus_operator_scrapes_others() -> None:
    asked = {"nativelink_metrics_namespaces": ["metrics"], "nativelink_prometheus_labels": {"release": "main"}}
    objects = objects_of(render.tree(values_of(nativelink_prometheus="operator", **asked, **OTHERS)))
    monitors = {each["metadata"]["name"]: each for each in objects if each["kind"] == "PodMonitor"}
    assert {
        name: (
            each["spec"]["namespaceSelector"]["matchNames"],
            [(end["portNumber"], end["path"]) for end in each["spec"]["podMetricsEndpoints"]],
        )
        for name, each in monitors.items()
    } == {
        "nativelink-edge": (["envoy-gateway-system"], [(19001, "/stats/prometheus")]),
        "nativelink-keda": (["keda"], [(8080, "/metrics")]),
        "nativelink-gitops": (["flux-system"], [(8080, "/metrics")]),
        "nativelink-kube-state-metrics": (["kube-system"], [(8080, "/metrics")]),
    }
    assert {each["metadata"]["labels"]["release"] for each in monitors.values()} == {"main"}
    kubelet = find(objects, "ServiceMonitor", "nativelink-kubelet")["spec"]
    assert [each["path"] for each in kubelet["endpoints"]] == ["/metrics", "/metrics/cadvisor"]
    none = objects_of(render.tree(values_of(nativelink_prometheus="operator", **asked)))
    assert [each["metadata"]["name"] for each in none if each["kind"] == "PodMonitor"] == []


def test_an_existing_prometheus_finds_the_demand() -> None:
    asked = {"nativelink_prometheus_labels": {"release": "main"}, "nativelink_metrics_namespaces": ["metrics"]}
    redis = values_of(
        nativelink_prometheus="operator",
        nativelink_scheduler_backend="redis",
        nativelink_metrics=["scheduler", "worker"],
        **asked,
    )
    objects = objects_of(render.tree(redis))
    monitor, rule = find(objects, "ServiceMonitor", "nativelink"), find(objects, "PrometheusRule", "nativelink-demand")
    assert monitor["metadata"]["labels"]["release"] == rule["metadata"]["labels"]["release"] == "main"
    ports = set()
    for name in ("demand", "collector", "collector-workers"):
        service = find(objects, "Service", f"nativelink-{name}")
        assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        (expression,) = monitor["spec"]["selector"]["matchExpressions"]
        assert service["metadata"]["labels"][expression["key"]] in expression["values"]
        ports |= {port["name"] for port in service["spec"]["ports"]}
    endpoints = [each["port"] for each in monitor["spec"]["endpoints"]]
    assert sorted(endpoints) == ["http-metrics", "http-reported", "http-workers"]
    assert ports >= {*endpoints}
    memory = objects_of(render.tree(values_of(nativelink_prometheus="annotations", **asked)))
    pod = find(memory, "Deployment", "nativelink-collector")["spec"]["template"]["metadata"]
    assert pod["annotations"] == {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": "9465",
        "prometheus.io/path": "/metrics",
    }
    collector = yaml.safe_load(render.tree(values_of(nativelink_prometheus="annotations", **asked))[COLLECTOR])
    assert collector["service"]["pipelines"]["metrics/demand"]["exporters"] == [
        "prometheus/demand",
        "prometheus/reported",
    ]
    # The collector is also rendered where nothing scales.
    still = render.tree(values_of(nativelink_scaling="none", nativelink_prometheus="annotations", **asked))
    assert "monitoring/collector-deployment.yaml" in still
    assert "monitoring/collector-deployment.yaml" not in render.tree(values_of(nativelink_scaling="none"))


def worker(**pool: object) -> Object:
    """Return the pod template of a pool."""
    objects = objects_of(render.tree(values_of(nativelink_worker_pools=[{"name": "a", **pool}])))
    return find(objects, "Deployment", "nativelink-worker-a")["spec"]["template"]


@pytest.mark.parametrize(
    ("kind", "selector", "tolerations"),
    [
        ("", {"disk": "nvme"}, 1),
        ("karpenter", {"disk": "nvme", "karpenter.sh/capacity-type": "spot"}, 1),
        ("eks", {"disk": "nvme", "eks.amazonaws.com/capacityType": "SPOT"}, 1),
        ("gke", {"disk": "nvme", "cloud.google.com/gke-spot": "true"}, 2),
        ("aks", {"disk": "nvme", "kubernetes.azure.com/scalesetpriority": "spot"}, 2),
    ],
)
def test_a_pool_on_spot_nodes(kind: str, selector: dict[str, str], tolerations: int) -> None:
    own = {"key": "builds", "operator": "Exists"}
    spec = worker(spot=kind, node_selector={"disk": "nvme"}, tolerations=[own])["spec"]
    assert spec["nodeSelector"] == selector
    assert own in spec["tolerations"]
    assert len(spec["tolerations"]) == tolerations


def test_cluster_autoscaler_evicts_only_workers_that_drain_in_time() -> None:
    def evictable(upload: str = "1m", **pool: object) -> object:
        pools = [{"name": "a", **pool}]
        values = values_of(nativelink_worker_pools=pools, nativelink_worker_upload_timeout=upload)
        template = find(objects_of(render.tree(values)), "Deployment", "nativelink-worker-a")["spec"]["template"]
        return template["metadata"]["annotations"]["cluster-autoscaler.kubernetes.io/safe-to-evict"]

    # 4 m of action, 1 m of upload and 5 m of margin are the 10 m that Cluster Autoscaler waits by default.
    assert evictable(longest_action="4m") == "true"
    assert evictable(longest_action="241s") == "false"
    assert evictable(longest_action="30m", upload="10m") == "false"
    said = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "true"}
    assert evictable(longest_action="30m", annotations=said) == "true"


def test_routes_by_service() -> None:
    routes = {
        route["metadata"]["name"]: {
            (match["method"]["service"], backend["name"], backend["port"])
            for rule in route["spec"]["rules"]
            for match in rule["matches"]
            for backend in rule["backendRefs"]
        }
        for route in objects_of(committed("prod"))
        if route["kind"] == "GRPCRoute"
    }
    reapi = "build.bazel.remote.execution.v2"
    assert routes == {
        "nativelink-execution": {
            (f"{reapi}.Execution", "nativelink-scheduler", 50052),
            (f"{reapi}.Capabilities", "nativelink-scheduler", 50052),
        },
        "nativelink-cache": {
            (f"{reapi}.ContentAddressableStorage", "nativelink-cas", 50051),
            (f"{reapi}.ActionCache", "nativelink-cas", 50051),
            ("google.bytestream.ByteStream", "nativelink-cas", 50051),
        },
    }


def test_the_ingress_reaches_the_same_services() -> None:
    values = values_of(
        nativelink_edge="ingress", nativelink_hostname="nl.example.com", nativelink_edge_tls_secret="tls"
    )
    ingress = find(objects_of(render.tree(values)), "Ingress", "nativelink")
    (rule,) = ingress["spec"]["rules"]
    assert rule["host"] == "nl.example.com"
    assert {path["path"].rpartition(".")[2]: path["backend"]["service"]["name"] for path in rule["http"]["paths"]} == {
        "Execution": "nativelink-scheduler",
        "Capabilities": "nativelink-scheduler",
        "ContentAddressableStorage": "nativelink-cas",
        "ActionCache": "nativelink-cas",
        "ByteStream": "nativelink-cas",
    }
    assert ingress["metadata"]["annotations"]["nginx.org/grpc-services"] == "nativelink-scheduler,nativelink-cas"
    assert ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/backend-protocol"] == "GRPC"


def test_a_silent_execution_is_not_cut_off() -> None:
    """Envoy's timeouts are off on both sides, and probes keep a load balancer from dropping the connection."""
    objects = objects_of(committed("prod"))
    clients = find(objects, "ClientTrafficPolicy", "nativelink")["spec"]
    backends = find(objects, "BackendTrafficPolicy", "nativelink")["spec"]
    for policy in (clients, backends):
        assert policy["targetRefs"] == [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "nativelink"}]
        assert policy["timeout"]["http"]["streamIdleTimeout"] == "0s"
    assert backends["timeout"]["http"]["requestTimeout"] == "0s"
    probes = clients["tcpKeepalive"]
    for name in ("idleTime", "interval"):
        # Azure's load balancer drops a silent connection after 4 minutes, AWS' after 350 s.
        assert 0 < int(probes[name].removesuffix("s")) < 240
    # With Envoy's default of 100 streams a connection, a build with more actions would wait for its own streams.
    assert clients["http2"]["maxConcurrentStreams"] == 1024
    # A load balancer for HTTP ignores these probes. AWS' classic one drops a silent connection after 60 s.
    assert clients["http2"]["connectionKeepalive"] == {"interval": "30s", "timeout": "20s"}
    # With a round trip of 20 ms, a window of 1 MiB allows 50 MB/s for each upload.
    assert clients["http2"]["initialStreamWindowSize"] == "1Mi"
    # Reads from the CAS have the same window. Envoy Gateway's defaults are 64 KiB, and a buffer of 32 KiB.
    assert backends["http2"] == {"initialStreamWindowSize": "1Mi", "initialConnectionWindowSize": "16Mi"}
    assert backends["connection"] == {"bufferLimit": "1Mi"}
    # A user of another controller writes the policies for it.
    others = objects_of(render.tree(values_of(ingress_provider="existing")))
    assert not [item for item in others if item["apiVersion"].startswith("gateway.envoyproxy.io")]


@pytest.mark.parametrize(
    ("shards", "schedulers", "routes"),
    [
        (1, 1, ["nativelink-cache", "nativelink-execution"]),
        (2, 1, ["nativelink-execution"]),
        (1, 2, ["nativelink-cache"]),
        (2, 2, []),
    ],
)
def test_a_call_finds_a_single_pod_by_the_address_of_its_service(
    shards: int, schedulers: int, routes: list[str]
) -> None:
    """Envoy answers at once for a Service without endpoints, and does not retry (tests/e2e/edge shows it)."""
    replicas = {"nativelink_cas_replicas": shards, "nativelink_scheduler_replicas": schedulers}
    objects = objects_of(render.tree(values_of(nativelink_scheduler_backend="redis", **replicas)))
    policies = sorted(item["metadata"]["name"] for item in objects if "TrafficPolicy" in item["kind"])
    assert policies == ["nativelink", "nativelink", *(["nativelink-single-pod"] if routes else [])]
    found = [item["spec"] for item in objects if item["metadata"]["name"] == "nativelink-single-pod"]
    kind = {"group": "gateway.networking.k8s.io", "kind": "GRPCRoute"}
    assert [spec["targetRefs"] for spec in found] == ([[kind | {"name": name} for name in routes]] if routes else [])
    assert all((spec["mergeType"], spec["routingType"]) == ("StrategicMerge", "Service") for spec in found)


def test_annotations_go_to_what_the_gateway_creates_or_to_the_ingress() -> None:
    annotations = {"service.beta.kubernetes.io/azure-load-balancer-internal": "true"}
    gateway = find(objects_of(render.tree(values_of(nativelink_edge_annotations=annotations))), "Gateway", "nativelink")
    assert gateway["spec"]["infrastructure"] == {"annotations": annotations}
    assert "annotations" not in gateway["metadata"]
    assert "infrastructure" not in find(objects_of(render.tree(values_of())), "Gateway", "nativelink")["spec"]
    values = values_of(nativelink_edge="ingress", nativelink_edge_annotations=annotations)
    ingress = find(objects_of(render.tree(values)), "Ingress", "nativelink")
    assert annotations.items() < ingress["metadata"]["annotations"].items()


def test_a_cas_pod_has_two_minutes_before_it_is_killed() -> None:
    probe = container(find(objects_of(committed("prod")), "StatefulSet", "nativelink-cas"))["livenessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 120


def test_nothing_routes_to_the_worker_api() -> None:
    for cluster in ALL:
        for item in objects_of(committed(cluster)):
            if item["kind"] in ("GRPCRoute", "Gateway", "Ingress"):
                assert "50061" not in yaml.safe_dump(item)
                assert "nativelink-scheduler-workers" not in yaml.safe_dump(item)


def test_the_cas_is_headless_and_parallel_and_its_pods_resolve_before_they_are_ready() -> None:
    objects = objects_of(committed("prod"))
    cas = find(objects, "StatefulSet", "nativelink-cas")["spec"]
    assert (cas["serviceName"], cas["podManagementPolicy"]) == ("nativelink-cas-headless", "Parallel")
    assert cas["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    headless = find(objects, "Service", "nativelink-cas-headless")["spec"]
    assert (headless["clusterIP"], headless["publishNotReadyAddresses"]) == ("None", True)
    keys = {constraint["topologyKey"] for constraint in cas["template"]["spec"]["topologySpreadConstraints"]}
    assert keys == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}


@pytest.mark.parametrize("cluster", ALL)
def test_every_workload(cluster: str) -> None:
    objects = objects_of(committed(cluster))
    workloads = [item for item in objects if item["kind"] in ("Deployment", "StatefulSet")]
    assert len(workloads) == {"local": 4, "dev": 4, "staging": 6, "prod": 5}[cluster]
    budgets = [item for item in objects if item["kind"] == "PodDisruptionBudget"]
    accounts = {
        (item["metadata"]["namespace"], item["metadata"]["name"])
        for item in objects
        if item["kind"] == "ServiceAccount"
    }
    for workload in workloads:
        name, namespace = workload["metadata"]["name"], workload["metadata"]["namespace"]
        spec = workload["spec"]["template"]["spec"]
        labels = workload["spec"]["template"]["metadata"]["labels"]
        assert workload["spec"]["selector"]["matchLabels"].items() <= labels.items(), name
        assert (namespace, spec["serviceAccountName"]) in accounts, name
        assert (spec["automountServiceAccountToken"], spec["enableServiceLinks"]) == (False, False), name
        isolated = workload["metadata"]["labels"]["app.kubernetes.io/component"] == "worker"
        assert spec["securityContext"].get("runAsNonRoot", False) is not isolated, name
        (budget,) = [
            budget
            for budget in budgets
            if budget["metadata"]["namespace"] == namespace
            and budget["spec"]["selector"]["matchLabels"].items() <= labels.items()
        ]
        assert budget["spec"]["maxUnavailable"] in (1, "25%"), name  # both allow the eviction of a single replica
        assert not [probe for probe in _probes(spec) if "grpc" in probe], name
        for part in [*spec["containers"], *spec.get("initContainers", [])]:
            added = {"add": ["CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETGID", "SETUID"]}
            expected = {"drop": ["ALL"], **(added if part["name"] == "worker" else {})}
            assert part["securityContext"]["capabilities"] == expected, name
            assert part["securityContext"]["allowPrivilegeEscalation"] is False, name
            assert part["securityContext"]["readOnlyRootFilesystem"] is True, name
            assert "requests" in part["resources"], name
    for account in (item for item in objects if item["kind"] == "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def _probes(spec: Object) -> list[Object]:
    return [
        part[kind]
        for part in spec["containers"]
        for kind in ("startupProbe", "readinessProbe", "livenessProbe")
        if kind in part
    ]


def test_a_worker_drains() -> None:
    worker = find(objects_of(committed("prod")), "Deployment", "nativelink-worker-default")["spec"]["template"]["spec"]
    (part,) = worker["containers"]
    assert part["command"] == ["/config/start.sh", "guarded"]
    assert part["lifecycle"]["preStop"] == {"exec": {"command": ["/config/drain.sh"]}}
    # The drain may wait for 30 m of action and 10 m of upload. A liveness kill must not wait that long.
    assert worker["terminationGracePeriodSeconds"] > 30 * 60 + 10 * 60
    assert part["livenessProbe"]["terminationGracePeriodSeconds"] == 30
    (init,) = worker["initContainers"]
    assert init["image"] == f"ghcr.io/tracemachina/nativelink-worker-init:{VERSION}"
    assert init["args"] == ["/shared/nativelink"]
    # For hard links the fast store and the work directory are below one mount. The work directory is not the mount.
    (local,) = json5.loads(committed("prod")["worker/default/worker.json5"])["workers"]
    mounts = {mount["mountPath"] for mount in part["volumeMounts"]}
    assert "/scratch" in mounts
    assert local["local"]["work_directory"] == "/scratch/actions"
    assert not {"/scratch/actions", "/scratch/store"} & mounts


def worker_of(**variables: object) -> Object:
    """Return the pod of the only pool."""
    found = find(objects_of(render.tree(values_of(**variables))), "Deployment", "nativelink-worker-default")
    return dict(found["spec"]["template"]["spec"])


def test_an_isolated_worker_is_root_with_the_program_for_both_architectures() -> None:
    files = render.tree(values_of())
    (program,) = [item for item in objects_of(files) if item["kind"] == "ConfigMap" and "isolation" in str(item)]
    headers = {name: base64.b64decode(content)[:20] for name, content in program["binaryData"].items()}
    # ELF for the machines 62 (x86-64) and 183 (AArch64).
    assert {name: (each[:4], each[18]) for name, each in headers.items()} == {
        "amd64": (b"\x7fELF", 62),
        "arm64": (b"\x7fELF", 183),
    }
    assert (program["immutable"], program["metadata"]["namespace"]) == (True, "nativelink-workers")
    pod = worker_of()
    assert program["metadata"]["name"] in [each.get("configMap", {}).get("name") for each in pod["volumes"]]
    (volume,) = [each["configMap"] for each in pod["volumes"] if each["name"] == "isolation"]
    assert {each["path"] for each in volume["items"]} == {
        f"{architecture}/{name}" for architecture in ("amd64", "arm64") for name in ("action", "guarded", "prepare")
    }
    # NativeLink must not be able to write there, because a request can make it write wherever root may.
    assert [each["readOnly"] for each in pod["containers"][0]["volumeMounts"] if each["name"] == "isolation"] == [True]
    security = pod["containers"][0]["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"]) == (0, 0)
    # The image of the first process has a user of its own, which no action has.
    assert "runAsUser" not in pod["securityContext"]
    assert "hostUsers" not in pod
    mounts = {each["mountPath"]: each.get("subPath") for each in pod["containers"][0]["volumeMounts"]}
    assert (mounts["/tmp"], mounts["/var/tmp"]) == ("tmp", "var-tmp")


def test_without_isolation_actions_have_the_user_of_nativelink() -> None:
    files = render.tree(values_of(nativelink_worker_isolation="none"))
    assert "worker/isolation.yaml" not in files
    assert "entrypoint" not in files["worker/default/worker.json5"]
    pod = worker_of(nativelink_worker_isolation="none")
    (part,) = pod["containers"]
    assert part["command"] == ["/config/start.sh"]
    assert part["securityContext"] == {
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["securityContext"]["runAsNonRoot"] is True


def test_a_pool_has_an_isolation_of_its_own() -> None:
    pools = [{"name": "default", "isolation": "none"}, {"name": "other"}]
    files = render.tree(values_of(nativelink_worker_pools=pools))
    assert "entrypoint" not in files["worker/default/worker.json5"]
    assert "entrypoint" in files["worker/other/worker.json5"]
    assert "worker/isolation.yaml" in files


def test_user_namespaces_and_the_guard_are_by_choice() -> None:
    assert worker_of(nativelink_worker_user_namespaces=True)["hostUsers"] is False
    assert worker_of(nativelink_worker_access="network_policy")["containers"][0]["command"] == ["/config/start.sh"]


def test_the_program_refuses_actions_at_the_ports_that_are_only_for_workers() -> None:
    source = (ROOT / "roles/nativelink/files/isolation/isolate.c").read_text()
    assert "GUARDED[] = {50053, 50061};" in source
    assert (PORTS["writers"], PORTS["worker_api"]) == (50053, 50061)


def test_clients_that_may_write_have_a_listener_only_if_somebody_is_let_in() -> None:
    files = render.tree(values_of())
    assert "client-writers" not in "".join(files.values())
    peer = {"namespaceSelector": {"matchLabels": {"ci": "yes"}}}
    files = render.tree(values_of(nativelink_writer_peers=[peer]))
    servers = {each["name"]: each for each in json5.loads(files["cas/cas.json5"])["servers"]}
    listener = servers["client-writers"]
    assert listener["listener"]["http"]["socket_address"] == "0.0.0.0:50054"
    assert listener["services"]["ac"] == [{"instance_name": "main", "ac_store": "AC_WRITABLE"}]
    service = find(objects_of(files), "Service", "nativelink-cas")["spec"]
    assert [port["port"] for port in service["ports"]] == [50051, 50054]
    rules = find(objects_of(files), "NetworkPolicy", "nativelink-cas")["spec"]["ingress"]
    assert {"from": [peer], "ports": [{"protocol": "TCP", "port": 50054}]} in rules


def test_the_first_process_of_a_worker_collects_processes_that_actions_leave() -> None:
    worker = find(objects_of(committed("prod")), "Deployment", "nativelink-worker-default")
    assert worker["spec"]["template"]["spec"]["shareProcessNamespace"] is True


def test_scratch_is_requested_of_the_nodes_disk_unless_it_has_a_volume_or_another_amount() -> None:
    def resources(**more: object) -> Object:
        pool = {"name": "one", "scratch_size": "40Gi", "resources": {"requests": {"cpu": "2"}}, **more}
        tree = render.tree(values_of(nativelink_worker_pools=[pool]))
        return dict(container(find(objects_of(tree), "Deployment", "nativelink-worker-one"))["resources"])

    def disk(request: str, limit: str) -> Object:
        return {"requests": {"cpu": "2", "ephemeral-storage": request}, "limits": {"ephemeral-storage": limit}}

    # A tenth more is for the log and for what is written beside the scratch, and at least 2Gi.
    assert resources() == disk("40Gi", "44Gi")
    assert resources(scratch_size="10Gi") == disk("10Gi", "12Gi")
    assert resources(resources={"requests": {"cpu": "2", "ephemeral-storage": "0"}}) == disk("0", "44Gi")
    assert resources(resources={"requests": {"cpu": "2", "ephemeral-storage": "60Gi"}}) == disk("60Gi", "66Gi")
    # Without a request, the limit is one.
    with_volume = {"requests": {"cpu": "2"}, "limits": {"ephemeral-storage": "2Gi"}}
    assert resources(scratch_storage_class="gp3") == with_volume
    limited = {"limits": {"ephemeral-storage": "60Gi"}}
    assert resources(resources=limited) == limited
    worker = find(objects_of(committed("prod")), "Deployment", "nativelink-worker-default")["spec"]["template"]["spec"]
    sizes = {each["name"]: each["emptyDir"].get("sizeLimit") for each in worker["volumes"] if "emptyDir" in each}
    assert sizes == {"shared": None, "scratch": "100Gi", "drain": "1Mi"}
    mounts = {each["mountPath"]: each["name"] for each in worker["containers"][0]["volumeMounts"]}
    assert mounts["/tmp"] == "scratch"


def everything() -> dict[str, str]:
    """Return a tree with every kind of pod."""
    return render.tree(
        values_of(
            nativelink_scheduler_backend="redis",
            nativelink_metrics=["scheduler", "cas", "worker"],
            nativelink_prometheus="bundled",
            nativelink_worker_pools=[{"name": "a", "headroom": 1, "prepull": True}],
        )
    )


@pytest.mark.parametrize("cluster", [*ALL, "everything"])
def test_no_container_may_use_up_the_memory_or_the_disk_of_its_node(cluster: str) -> None:
    objects = objects_of(everything() if cluster == "everything" else committed(cluster))
    pods = {item["metadata"]["name"]: item["spec"]["template"]["spec"] for item in objects if item["kind"] in WORKLOADS}
    missing = [
        (name, part["name"], kind, resource)
        for name, pod in pods.items()
        for part in [*pod.get("initContainers", ()), *pod["containers"]]
        for kind in ("requests", "limits")
        for resource in ("memory", "ephemeral-storage")
        if resource not in part["resources"][kind]
    ]
    assert missing == []
    if cluster == "everything":
        assert {name.removeprefix("nativelink-") for name in pods} == {
            *("cas", "scheduler", "redis", "worker-a", "headroom-a", "prepull-a"),
            *("collector", "collector-workers", "demand", "prometheus"),
        }
        # The data of Prometheus may take 2Gi.
        (prometheus,) = pods["nativelink-prometheus"]["containers"]
        assert prometheus["resources"]["limits"]["ephemeral-storage"] == "3Gi"


def test_nothing_grows_without_a_limit() -> None:
    tree = committed("prod")
    assert simple(tree)["retain_completed_for_s"] == 300
    redis = container(find(objects_of(committed("staging")), "StatefulSet", "nativelink-redis"))
    assert redis["args"][redis["args"].index("--maxmemory") + 1] == str(4 * GIB * 70 // 100)
    assert redis["resources"]["requests"]["memory"] == "3Gi"
    # The volume's 200 GiB have 13,107,200 inodes (16 KiB each), of which 95 % are given away.
    verified, results = json5.loads(tree["cas/cas.json5"])["stores"][:2]
    cas = verified["verify"]["backend"]["filesystem"]["eviction_policy"]
    results = results["filesystem"]["eviction_policy"]
    assert cas == {"max_bytes": 160 * GIB, "evict_bytes": 8 * 1024**2, "max_count": 9_830_400}
    # A result takes a block of 4 KiB at least: 10 GiB are 2,621,440 of them.
    assert results == {"max_bytes": 10 * GIB, "evict_bytes": 8 * 1024**2, "max_count": 2_621_440}
    assert cas["max_count"] + results["max_count"] == 13_107_200 * 95 // 100


def test_a_redis_without_a_limit_of_its_memory() -> None:
    small = {"requests": {"memory": "1Gi"}}
    tree = render.tree(values_of(nativelink_scheduler_backend="redis", nativelink_redis_resources=small))
    assert "--maxmemory" not in container(find(objects_of(tree), "StatefulSet", "nativelink-redis"))["args"]


def test_a_slow_disk_or_redis_kills_no_pod() -> None:
    objects = objects_of(committed("prod"))
    for kind, name in (("StatefulSet", "nativelink-cas"), ("Deployment", "nativelink-scheduler")):
        assert container(find(objects, kind, name))["livenessProbe"]["tcpSocket"] == {"port": "health"}


@pytest.mark.parametrize("cluster", ALL)
def test_a_pod_that_is_not_ready_does_not_block_the_drain_of_a_node(cluster: str) -> None:
    budgets = [item["spec"] for item in objects_of(committed(cluster)) if item["kind"] == "PodDisruptionBudget"]
    assert budgets
    assert {budget["unhealthyPodEvictionPolicy"] for budget in budgets} == {"AlwaysAllow"}


def test_the_edge_asks_for_certificates_where_a_ca_is_named() -> None:
    def policy(**more: object) -> Object:
        tree = render.tree(values_of(nativelink_edge_tls_secret="edge-tls", **more))
        return dict(find(objects_of(tree), "ClientTrafficPolicy", "nativelink")["spec"])

    asked = policy(nativelink_edge_client_ca_secret="clients-ca")["tls"]
    assert asked == {"clientValidation": {"caCertificateRefs": [{"kind": "Secret", "name": "clients-ca"}]}}
    assert "tls" not in policy()


def test_the_admin_service_is_not_used() -> None:
    servers = json5.loads(committed("prod")["scheduler/scheduler.json5"])["servers"]
    assert {name for server in servers for name in server["services"]} == {
        "ac", "execution", "capabilities", "worker_api", "health",
    }  # fmt: skip


@pytest.mark.parametrize("cluster", ALL)
def test_all_objects_are_namespaced(cluster: str) -> None:
    namespaced = {
        "AlertmanagerConfig", "BackendTrafficPolicy", "ClientTrafficPolicy", "ConfigMap", "Deployment", "GRPCRoute",
        "Gateway", "HorizontalPodAutoscaler", "Ingress", "NetworkPolicy", "PodDisruptionBudget", "PodMonitor",
        "PrometheusRule", "ScaledObject", "Service", "ServiceAccount", "ServiceMonitor", "StatefulSet",
    }  # fmt: skip
    for item in objects_of(committed(cluster)):
        assert item["kind"] in namespaced
        assert item["metadata"]["namespace"] in ("nativelink", "nativelink-workers")


@pytest.mark.parametrize("cluster", ALL)
def test_each_file_has_one_object_and_a_header_that_names_its_template(cluster: str) -> None:
    for path, text in committed(cluster).items():
        if path.startswith("monitoring/dashboards/"):  # JSON has no comments
            continue
        header = text.splitlines()[1 if text.startswith("#!") else 0]
        template = re.search(r"roles/nativelink/templates/\S+\.j2", header)
        assert template, f"{path}: {header}"
        assert (ROOT / template[0]).is_file(), path
        if path.endswith(".yaml"):
            assert len(list(yaml.safe_load_all(text))) == 1, path


def test_every_template_is_rendered_under_a_condition_that_exists() -> None:
    folder = ROOT / "roles/nativelink/templates"
    templates = {str(path.relative_to(folder)).removesuffix(".j2") for path in folder.rglob("*.j2")}
    of_components = {f"component/{name}" for name in render.COMPONENT_FILES}
    assert templates == {
        *render.FILES,
        *render.POOL_FILES,
        *render.COLLECTOR_FILES,
        *of_components,
        "monitoring/podmonitor.yaml",
        "kustomization.yaml",
    }


@pytest.mark.parametrize("cluster", ALL)
def test_references_resolve_in_what_kustomize_builds(cluster: str, kustomize: Callable[[Path], list[Object]]) -> None:
    objects = kustomize(CLUSTERS / cluster)
    names = {(item["kind"], item["metadata"]["namespace"], item["metadata"]["name"]) for item in objects}
    used = set()
    for item in objects:
        namespace = item["metadata"]["namespace"]
        if item["kind"] in ("Deployment", "StatefulSet"):
            for volume in item["spec"]["template"]["spec"].get("volumes", ()):
                if "configMap" in volume:
                    used.add(("ConfigMap", namespace, volume["configMap"]["name"]))
        if item["kind"] == "GRPCRoute":
            for rule in item["spec"]["rules"]:
                used |= {("Service", namespace, backend["name"]) for backend in rule["backendRefs"]}
        if item["kind"] in ("ScaledObject", "HorizontalPodAutoscaler"):
            used.add(("Deployment", namespace, item["spec"]["scaleTargetRef"]["name"]))
        if item["kind"] == "StatefulSet":
            used.add(("Service", namespace, item["spec"]["serviceName"]))
    assert used <= names
    # Grafana's sidecar reads the dashboards.
    generated = {name for name in names if name[0] == "ConfigMap" and "-dashboard-" not in name[2]}
    assert generated == {name for name in used if name[0] == "ConfigMap"}, "a ConfigMap that is not mounted"
    pods = [item for item in objects if item["kind"] in ("Deployment", "StatefulSet")]
    for service in (item for item in objects if item["kind"] == "Service"):
        behind = [
            pod
            for pod in pods
            if pod["metadata"]["namespace"] == service["metadata"]["namespace"]
            and service["spec"]["selector"].items() <= pod["spec"]["template"]["metadata"]["labels"].items()
        ]
        assert len(behind) == 1, service["metadata"]["name"]
        open_ports = {port["name"] for port in container(behind[0])["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= open_ports

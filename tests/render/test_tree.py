"""Properties that every tree has, and what compares two places of a tree. Single values are in facts.yml."""

import base64
import json
import re
from typing import Any

import json5
import pytest
import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render
from ansible_collections.nativelink.gitops.plugins.plugin_utils.ports import PORTS
from ansible_collections.nativelink.gitops.plugins.plugin_utils.versions import VERSIONS

from testbed import clang
from testkit.facts import at
from testkit.playbooks import run_playbook
from testkit.trees import CLUSTERS, ROOT, Object, committed, find, kustomized, objects_of, values_of

ALL = ("local", "dev", "staging", "prod")
WORKLOADS = ("DaemonSet", "Deployment", "StatefulSet")
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def configurations(files: dict[str, str]) -> dict[str, Any]:
    return {path: json5.loads(text) for path, text in files.items() if path.endswith(".json5")}


@pytest.mark.parametrize("inventory", ["local", "reference"])
def test_the_committed_trees_are_what_the_inventories_render(inventory: str) -> None:
    done = run_playbook("render", f"inventories/{inventory}", "--check", "--diff")
    assert done.status == 0, done.output
    assert done.recap.keys() == ({"local"} if inventory == "local" else {"dev", "staging", "prod"})
    assert done.changed == 0, f"run `make render` and commit:\n{done.output}"


def shards(files: dict[str, str]) -> dict[str, dict[str, list[Object]]]:
    """Return the shards of both kinds, by file."""
    found = {}
    for path, config in configurations(files).items():
        cas = "stores.CAS.fast_slow.slow" if "worker" in path else f"stores.{'CAS_SHARD' if 'cas' in path else 'CAS'}"
        results = "stores.AC" if "worker" in path else "stores.AC_SHARD"
        found[path] = {kind: at(config, f"{place}.shard.stores") for kind, place in (("cas", cas), ("ac", results))}
    return found


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
        assert [shard["weight"] for shard in found] == [1] * 4, "NativeLink does not start without them"
        reached = [shard["store"]["grpc"] for shard in found]
        assert [store["endpoints"] for store in reached] == [
            [{"address": f"grpc://nativelink-cas-{number}.nativelink-cas-headless.nativelink.svc:50052"}]
            for number in range(4)
        ]
        assert {(store["instance_name"], store["store_type"]) for store in reached} == {("slice", kind)}
        # v1.3.2 does not know this field, and would not start.
        batched = version != "v1.3.2" and kind == "cas"
        assert {store.get("experimental_read_batching") == {} for store in reached} == {batched}


def test_a_prometheus_operator_finds_the_services() -> None:
    wanted = {"nativelink_prometheus": "operator", "nativelink_metrics": ["scheduler", "worker"]}
    asked = {"nativelink_prometheus_labels": {"release": "main"}, "nativelink_metrics_namespaces": ["metrics"]}
    objects = objects_of(render.tree(values_of(nativelink_scheduler_backend="redis", **wanted, **asked)))
    monitor, rule = find(objects, "ServiceMonitor", "nativelink"), find(objects, "PrometheusRule", "nativelink-demand")
    assert monitor["metadata"]["labels"]["release"] == rule["metadata"]["labels"]["release"] == "main"
    (expression,) = at(monitor, "spec.selector.matchExpressions")
    ports = set()
    for name in ("demand", "collector", "collector-workers"):
        service = find(objects, "Service", f"nativelink-{name}")
        assert at(monitor, "spec.selector.matchLabels").items() <= service["metadata"]["labels"].items()
        assert service["metadata"]["labels"][expression["key"]] in expression["values"]
        ports |= set(at(service, "spec.ports.*.name"))
    assert sorted(at(monitor, "spec.endpoints.*.port")) == ["http-metrics", "http-reported", "http-workers"]
    assert ports >= set(at(monitor, "spec.endpoints.*.port"))


def test_nothing_routes_to_the_worker_api() -> None:
    for cluster in ALL:
        for item in objects_of(committed(cluster)):
            if item["kind"] in ("GRPCRoute", "Gateway", "Ingress"):
                assert "50061" not in yaml.safe_dump(item)
                assert "nativelink-scheduler-workers" not in yaml.safe_dump(item)


@pytest.mark.parametrize("cluster", ALL)
def test_every_workload(cluster: str) -> None:
    objects = objects_of(committed(cluster))
    budgets = [item for item in objects if item["kind"] == "PodDisruptionBudget"]
    own = [item for item in objects if item["kind"] == "ServiceAccount"]
    assert {account["automountServiceAccountToken"] for account in own} == {False}
    accounts = {(account["metadata"]["namespace"], account["metadata"]["name"]) for account in own}
    for workload in (item for item in objects if item["kind"] in ("Deployment", "StatefulSet")):
        name, namespace = workload["metadata"]["name"], workload["metadata"]["namespace"]
        spec, labels = at(workload, "pod"), at(workload, "spec.template.metadata.labels")
        assert workload["spec"]["selector"]["matchLabels"].items() <= labels.items(), name
        assert (namespace, spec["serviceAccountName"]) in accounts, name
        assert (spec["automountServiceAccountToken"], spec["enableServiceLinks"]) == (False, False), name
        isolated = workload["metadata"]["labels"]["app.kubernetes.io/component"] == "worker"
        assert spec["securityContext"].get("runAsNonRoot", False) is not isolated, name
        (budget,) = [
            budget["spec"]
            for budget in budgets
            if budget["metadata"]["namespace"] == namespace
            and budget["spec"]["selector"]["matchLabels"].items() <= labels.items()
        ]
        assert budget["maxUnavailable"] in (1, "25%"), name  # both allow the eviction of a single replica
        # A pod that is not ready does not block the drain of a node.
        assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow", name
        for part in [*spec["containers"], *spec.get("initContainers", [])]:
            assert not [probe for kind in PROBES if "grpc" in (probe := part.get(kind, {}))], name
            added = {"add": ["CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETGID", "SETUID"]}
            expected = {"drop": ["ALL"], **(added if part["name"] == "worker" else {})}
            assert part["securityContext"]["capabilities"] == expected, name
            assert part["securityContext"]["allowPrivilegeEscalation"] is False, name
            assert part["securityContext"]["readOnlyRootFilesystem"] is True, name
            assert "requests" in part["resources"], name


def test_the_program_that_isolates_actions_is_the_committed_one() -> None:
    program = yaml.load(render.tree(values_of())["worker/isolation.yaml"], yaml.CSafeLoader)["binaryData"]
    assert {name: base64.b64decode(content) for name, content in program.items()} == {
        name: (clang.ISOLATION / name).read_bytes() for name in ("amd64", "arm64")
    }


def test_the_program_refuses_actions_at_the_ports_that_are_only_for_workers() -> None:
    source = (ROOT / "roles/nativelink/files/isolation/isolate.c").read_text()
    assert "GUARDED[] = {50053, 50061};" in source
    assert (PORTS["writers"], PORTS["worker_api"]) == (50053, 50061)


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


def flat(found: Any) -> list[str]:
    """Return the texts in lists of lists."""
    return [found] if isinstance(found, str) else [text for each in found or () for text in flat(each)]


@pytest.mark.parametrize("cluster", ALL)
def test_references_resolve_in_what_kustomize_builds(cluster: str) -> None:
    objects = kustomized(CLUSTERS / cluster)
    names = {(item["kind"], item["metadata"]["namespace"], item["metadata"]["name"]) for item in objects}
    pods = [item for item in objects if item["kind"] in ("Deployment", "StatefulSet")]
    used = {
        (kind, item["metadata"]["namespace"], name)
        for of, path, kind in (
            ("Deployment", "pod.volumes.*.configMap.name", "ConfigMap"),
            ("StatefulSet", "pod.volumes.*.configMap.name", "ConfigMap"),
            ("StatefulSet", "spec.serviceName", "Service"),
            ("GRPCRoute", "spec.rules.*.backendRefs.*.name", "Service"),
            ("ScaledObject", "spec.scaleTargetRef.name", "Deployment"),
            ("HorizontalPodAutoscaler", "spec.scaleTargetRef.name", "Deployment"),
        )
        for item in objects
        if item["kind"] == of
        for name in flat(at(item, path))
    }
    assert used <= names
    # Grafana's sidecar reads the dashboards.
    generated = {name for name in names if name[0] == "ConfigMap" and "-dashboard-" not in name[2]}
    assert generated == {name for name in used if name[0] == "ConfigMap"}, "a ConfigMap that is not mounted"
    for service in (item for item in objects if item["kind"] == "Service"):
        behind = [
            pod
            for pod in pods
            if pod["metadata"]["namespace"] == service["metadata"]["namespace"]
            and service["spec"]["selector"].items() <= pod["spec"]["template"]["metadata"]["labels"].items()
        ]
        assert len(behind) == 1, service["metadata"]["name"]
        open_ports = set(at(behind[0], "container.ports.*.name"))
        assert set(at(service, "spec.ports.*.targetPort")) <= open_ports


def test_each_change_of_the_tree_is_another_job_of_verify() -> None:
    """Flux runs it only then."""

    def job(**variables: object) -> str:
        return render.tree(values_of(nativelink_verify_image="a/b", **variables))["verify/job.yaml"]

    assert job() == job() != job(nativelink_log_level="info")

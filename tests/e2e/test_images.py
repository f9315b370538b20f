"""Images of components on a real node: what no other test runs, and real ones in the place of ours."""

from __future__ import annotations

import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed import build, components, debian, node
from testbed.cluster import Cluster, ClusterError
from testbed.images import Image
from testbed.waiting import until

SPACE = "images"
TREE = Path(__file__).parents[2] / "clusters" / "prod" / "rendered"
PROMETHEUS = {"global": {"scrape_interval": "1s"}}


@pytest.fixture
def space(real: Cluster) -> Iterator[Cluster]:
    """A cluster with the namespace of a test, in which only restricted pods may run."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    real.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE, "labels": labels}})
    yield real
    real.run("delete", "namespace", SPACE, "--timeout=60s")


def rendered(name: str) -> dict[str, Any]:
    """An object of the tree, in the test's namespace."""
    found: dict[str, Any] = yaml.safe_load((TREE / name).read_text())
    found["metadata"]["namespace"] = SPACE
    return found


def made(kind: str, name: str, **content: object) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": SPACE}, **content}


def pod(name: str, image: str, *args: str, volumes: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """A pod that the Pod Security level "restricted" lets in; its volumes are mounted at ``/NAME``."""
    container = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "Always",
        "args": list(args),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": volume["name"], "mountPath": f"/{volume['name']}"} for volume in volumes or ()],
    }
    user = {"runAsNonRoot": True, "runAsUser": 65532, "fsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {"containers": [container], "volumes": volumes or [], "securityContext": user, "restartPolicy": "Never"}
    return made("Pod", name, spec=spec)


def test_prometheus_sees_what_a_script_finds_in_redis(space: Cluster) -> None:
    for component in ("redis", "redis-exporter", "prometheus"):
        space.load(*components.images_of(component))
    stateful = rendered("scheduler/redis-statefulset.yaml")
    stateful["spec"]["volumeClaimTemplates"][0]["spec"].pop("storageClassName", None)
    stateful["spec"]["template"]["spec"]["containers"][0]["resources"] = {}
    demand = rendered("monitoring/demand-deployment.yaml")
    demand["spec"]["template"]["spec"]["volumes"] = [{"name": "config", "configMap": {"name": "demand"}}]
    scrape = {"job_name": "demand", "static_configs": [{"targets": [f"nativelink-demand.{SPACE}.svc:9121"]}]}
    space.apply(
        made("Secret", "nativelink-redis", stringData={"password": "a-password"}),
        made("ConfigMap", "demand", data={"demand.lua": (TREE / "monitoring" / "demand.lua").read_text()}),
        made("ConfigMap", "config", data={"prometheus.yml": yaml.safe_dump(PROMETHEUS | {"scrape_configs": [scrape]})}),
        rendered("scheduler/redis-serviceaccount.yaml"),
        rendered("scheduler/redis-service.yaml"),
        rendered("monitoring/demand-serviceaccount.yaml"),
        rendered("monitoring/demand-service.yaml"),
        stateful,
        demand,
        pod(
            "prometheus",
            components.images_of("prometheus")[0].reference,
            "--config.file=/config/prometheus.yml",
            "--storage.tsdb.path=/data",
            volumes=[{"name": "config", "configMap": {"name": "config"}}, {"name": "data", "emptyDir": {}}],
        ),
    )
    for kind, name in (("statefulset", "nativelink-redis"), ("deployment", "nativelink-demand")):
        space.run("-n", SPACE, "rollout", "status", f"{kind}/{name}", "--timeout=120s")

    def redis(*command: str) -> str:
        client = ("exec", "nativelink-redis-0", "--", "/opt/redis-stack/bin/redis-cli", "-e")
        return space.run("-n", SPACE, *client, *command)

    # As NativeLink's scheduler has it: an index, and a hash for each action.
    index = ("aa__state_sort_key_x", "ON", "HASH", "PREFIX", "1", "aa_", "SCHEMA", "state", "TAG")
    assert redis("FT.CREATE", *index) == "OK\n"
    action = {"action_info": {"platform_properties": {}}}
    redis("HSET", "aa_1", "state", "queued", "data", json.dumps(action))

    address = space.run("-n", SPACE, "get", "pod", "prometheus", "-o", "jsonpath={.status.podIP}")
    query = urllib.parse.quote('redis_script_values{filename="/config/demand.lua"}')
    found: list[str] = []

    def one_action_is_queued() -> bool:
        try:
            with urllib.request.urlopen(f"http://{address}:9090/api/v1/query?query={query}", timeout=2) as answer:
                result = json.load(answer)["data"]["result"]
        except OSError as error:
            raise ClusterError(str(error)) from None
        found[:] = sorted(f"{sample['metric']['key']} {sample['value'][1]}" for sample in result)
        return found == ["default:executing 0", "default:queued 1"]

    until("Prometheus to have one queued action", one_action_is_queued, 60, lambda: f"; it has {found}")


def says(what: str) -> Image:
    return Image("ghcr.io/some/tool:1", ("/usr/bin/busybox", "echo", what), root=debian.root("busybox"))


def said(where: Cluster, name: str) -> str:
    """What a new pod of the image says."""
    where.apply(pod(name, "ghcr.io/some/tool:1"))
    where.run("-n", SPACE, "wait", "--for=jsonpath={.status.phase}=Succeeded", f"pod/{name}", "--timeout=60s")
    return where.run("-n", SPACE, "logs", name)


def test_a_saved_image_comes_in_the_place_of_ours(
    space: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space.load(says("the real one"))
    network = node.network(space.home)
    assert network
    crane = build.binaries({"crane": ("crane",)})["crane"]
    command = [crane, "pull", "--insecure", f"{network.node}:5000/some/tool:1", tmp_path / "tool.tar"]
    subprocess.run(command, check=True, capture_output=True)

    space.load(says("a stand-in"))
    assert said(space, "without") == "a stand-in\n"
    monkeypatch.setenv("TESTBED_IMAGES", str(tmp_path))
    space.load(says("a stand-in"))
    assert said(space, "with") == "the real one\n"

"""Placeholders keep room for the workers of a pool, and a DaemonSet pulls their images."""

import json
import os
import time
from collections.abc import Iterator

import pytest
import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render

from testbed import cluster
from testbed.cluster import Cluster
from testbed.node import LABEL
from testbed.waiting import patient, until
from testkit.facts import at
from testkit.farm import secure_namespace
from testkit.trees import ROOT, Object, find, objects_of, values_of

WORKERS = "nativelink-workers"
TAINT = {"key": "builds", "operator": "Exists"}
POOL = {"name": "a", "headroom": 3, "prepull": True, "node_selector": {"disk": "nvme"}, "tolerations": [TAINT]}


def objects(pool: Object, **variables: object) -> list[Object]:
    return objects_of(render.tree(values_of(nativelink_worker_pools=[pool], **variables)))


def test_a_placeholder_takes_as_much_of_a_node_as_a_worker() -> None:
    found = objects(POOL, nativelink_workers_apart=True)
    ours, theirs = (find(found, "Deployment", f"nativelink-{name}-a") for name in ("headroom", "worker"))
    for place in ("pod.nodeSelector", "pod.tolerations", "pod.affinity", "container.resources"):
        assert at(ours, place) == at(theirs, place)


def test_a_node_pulls_the_images_of_the_workers() -> None:
    found = objects(POOL)
    daemon, worker = find(found, "DaemonSet", "nativelink-prepull-a"), find(found, "Deployment", "nativelink-worker-a")
    ours, theirs = (
        {part["name"]: part for place in ("initContainers", "containers") for part in at(each, f"pod.{place}")}
        for each in (daemon, worker)
    )
    for key in ("image", "args", "volumeMounts"):
        assert ours["nativelink"][key] == theirs["nativelink"][key]
    assert {name: part["image"] for name, part in theirs.items() if ours[name]["image"] != part["image"]} == {}
    for place in ("pod.nodeSelector", "pod.tolerations"):
        assert at(daemon, place) == at(worker, place)


@pytest.mark.parametrize(("kind", "name"), [("Deployment", "headroom"), ("DaemonSet", "prepull")])
def test_what_is_for_workers_does_not_select_the_other_pods_of_a_pool(kind: str, name: str) -> None:
    found = objects(POOL)
    labels = at(find(found, kind, f"nativelink-{name}-a"), "spec.template.metadata.labels")
    assert (labels["app.kubernetes.io/component"], labels["nativelink-gitops/pool"]) == (name, "a")
    worker = find(found, "Deployment", "nativelink-worker-a")
    for selector in (
        at(find(found, "PodDisruptionBudget", "nativelink-worker-a"), "spec.selector.matchLabels"),
        at(worker, "spec.selector.matchLabels"),
        at(find(found, "NetworkPolicy", "nativelink-worker"), "spec.podSelector.matchLabels"),
    ):
        assert selector.items() <= at(worker, "spec.template.metadata.labels").items()
        assert not selector.items() <= labels.items()


# --- On fake nodes of 64 CPUs: three workers fill one.

NODE_SECONDS = 10
"""Seconds that the node autoscaler, which this test plays by hand, takes to add a node."""
SMALL: Object = {"name": "a", "prepull": True, "resources": {"requests": {"cpu": "20", "memory": "8Gi"}}}


@pytest.fixture(scope="module")
def api() -> Iterator[Cluster]:
    """Start a cluster without nodes, with the namespace and the PriorityClass as provisioning makes them."""
    tasks = yaml.safe_load((ROOT / "roles/nativelink/tasks/provision.yml").read_text())
    provisioned = [
        item for task in tasks for item in task.get("nativelink.gitops.apply_objects", {}).get("objects", ())
    ]
    (priority_class,) = [item for item in provisioned if item["metadata"]["name"] == "nativelink-headroom"]
    with cluster.fresh(f"headroom-{os.environ.get('PYTEST_XDIST_WORKER', 'tests')}", nodes=0) as running:
        running.apply(secure_namespace(WORKERS, "baseline"), priority_class)
        # kwok removes a pod within milliseconds, and a kubelet takes about a second. The grace period of placeholders
        # avoids a fault of the scheduler only if their removal takes some time.
        delay = json.dumps({"spec": {"delay": {"durationMilliseconds": 1000}}})
        running.run("patch", "stage", "pod-delete", "--type=merge", "-p", delay)
        yield running


def add_node(api: Cluster, name: str) -> None:
    labels = {"kubernetes.io/hostname": name, LABEL: "fake"}
    api.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}})


def pods(api: Cluster, component: str) -> list[Object]:
    selector = f"app.kubernetes.io/component in ({component})"
    return list(json.loads(api.run("get", "pods", "-n", WORKERS, "-l", selector, "-o", "json"))["items"])


def nodes_of(api: Cluster, component: str) -> list[str]:
    """Return the node of each pod of a component, sorted; "" for a pod without one."""
    return sorted(pod["spec"].get("nodeName", "") for pod in pods(api, component))


def are_refused(api: Cluster, component: str, count: int) -> bool:
    """Return True if the scheduler has found no node for so many pods."""
    conditions = [each for pod in pods(api, component) for each in pod["status"].get("conditions", ())]
    return [each.get("reason") for each in conditions if each["type"] == "PodScheduled"] == ["Unschedulable"] * count


@pytest.mark.parametrize(
    ("headroom", "with_class", "at_once"),
    [
        (3, True, True),
        # The counter-runs: without headroom an autoscaler has removed the idle node, and without the class the
        # placeholders keep their place.
        (0, True, False),
        (3, False, False),
    ],
)
def test_workers_from_zero_need_not_wait_for_a_node(
    api: Cluster, headroom: int, with_class: bool, at_once: bool
) -> None:
    found = objects({**SMALL, "headroom": headroom})
    wanted = [find(found, "ServiceAccount", "nativelink-worker"), find(found, "DaemonSet", "nativelink-prepull-a")]
    workers = find(found, "Deployment", "nativelink-worker-a")
    workers["spec"]["replicas"] = 0
    wanted.append(workers)
    if headroom:
        placeholders = find(found, "Deployment", "nativelink-headroom-a")
        if not with_class:
            del placeholders["spec"]["template"]["spec"]["priorityClassName"]
        wanted.append(placeholders)
        add_node(api, "first")
    try:
        api.apply(*wanted)
        full = ["first"] * headroom
        until("the placeholders to fill the node", lambda: nodes_of(api, "headroom") == full, 30)
        until("the pod that pulls the images", lambda: nodes_of(api, "prepull") == full[:1], 30)

        api.run("scale", "deployment", "nativelink-worker-a", "-n", WORKERS, "--replicas=3")
        if at_once:
            until("the workers to have the node", lambda: nodes_of(api, "worker") == ["first"] * 3, 20)
            until("the placeholders to wait", lambda: are_refused(api, "headroom", 3), 20)
            assert {pod["spec"]["priority"] for pod in pods(api, "headroom")} == {-5}
            assert {pod["spec"]["priority"] for pod in pods(api, "worker")} == {0}
            add_node(api, "second")
            until("the placeholders to have the new node", lambda: nodes_of(api, "headroom") == ["second"] * 3, 30)
        else:
            until("the workers to wait", lambda: are_refused(api, "worker", 3), 20)
            time.sleep(NODE_SECONDS)
            assert nodes_of(api, "worker") == [""] * 3
            assert nodes_of(api, "headroom") == full
            add_node(api, "second")
            until("the workers to have the new node", lambda: nodes_of(api, "worker") == ["second"] * 3, 30)
        pulling = ["first", "second"] if headroom else ["second"]
        until("each node to pull the images", lambda: nodes_of(api, "prepull") == pulling, 30)
    finally:
        api.run("delete", "deployment,daemonset", "--all", "-n", WORKERS, f"--timeout={patient(60)}s")
        until("all pods to be gone", lambda: not pods(api, "worker,headroom,prepull"), 60)
        api.run("delete", "node", "--all")

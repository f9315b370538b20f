"""A real API server accepts every tree without a warning, and its controllers make the pods."""

import json
import re
import subprocess
from collections import Counter
from typing import Any

import pytest
import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render
from hypothesis import Phase, given, settings

from testbed.cluster import Cluster
from testbed.node import LABEL
from testbed.waiting import until
from testkit.inventories import inventories
from testkit.trees import CLUSTERS, ROOT, Object, find, objects_of, resource, values_of


def apply(api: Cluster, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = api.command("apply", "--server-side", "--field-manager=nativelink-gitops", *arguments)
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)


def judged(api: Cluster, *objects: Object) -> str:
    """Return what the API server says against objects, without applying them."""
    return apply(api, "--dry-run=server", "-f", "-", stdin=yaml.safe_dump_all(objects)).stderr


def runs(pod: Object) -> bool:
    return pod["status"].get("phase") == "Running" and not pod["metadata"].get("deletionTimestamp")


def get(api: Cluster, *arguments: str) -> list[Object]:
    return list(json.loads(api.run("get", *arguments, "-o", "json"))["items"])


def test_an_unknown_field_is_refused(api: Cluster) -> None:
    """The counter-run shows that the tests below are strict."""
    service = find(objects_of(render.tree(values_of())), "Service", "nativelink-cas")
    service["spec"]["prots"] = service["spec"].pop("ports")
    assert "prots" in judged(api, service)


def test_thirty_inventories_are_accepted_without_a_warning(api: Cluster) -> None:
    texts: list[str] = []

    @settings(max_examples=30, derandomize=True, phases=[Phase.generate])
    @given(inventories())
    def draw(variables: dict[str, Any]) -> None:
        files = render.tree(values_of(f"c{len(texts)}", **variables))
        texts.append("".join(files[path] for path in yaml.safe_load(files["kustomization.yaml"])["resources"]))

    draw()
    assert len(texts) == 30
    # All texts are in one call, because kubectl is slow. They are passed on as they are, because Go's YAML reads
    # 1e3, on and y differently than Python's.
    done = apply(api, "--dry-run=server", "--force-conflicts", "-f", "-", stdin="".join(texts))
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == sum(text.count("\nkind: ") for text in texts) > 30 * 20


@pytest.mark.parametrize(
    ("name", "pods"),
    [
        # KEDA, which does not run here, makes more workers.
        ("local", {"cas": 3, "scheduler": 1, "collector": 1, "worker-default": 1}),
        ("prod", {"cas": 3, "scheduler": 1, "collector": 1, "collector-workers": 1, "worker-default": 1}),
        ("staging", {"cas": 3, "scheduler": 2, "redis": 1, "demand": 1, "worker-default": 1, "worker-large": 1}),
    ],
)
def test_the_controllers_make_its_pods_under_pod_security(api: Cluster, name: str, pods: dict[str, int]) -> None:
    if name != "local":
        api.run("delete", "statefulset,deployment,pvc", "--all", "-n", "nativelink")
        api.run("delete", "deployment", "--all", "-n", "nativelink-workers")
        api.offer_volumes("gp3", {"prod": "200Gi", "staging": "50Gi"}[name], 4)
    done = apply(api, "-k", str(CLUSTERS / name))
    assert (done.returncode, done.stderr) == (0, "")

    def running() -> bool:
        found: Counter[str] = Counter()
        for pod in get(api, "pods", "-A"):
            labels = pod["metadata"]["labels"]
            pool = labels.get("nativelink-gitops/pool")
            found[labels["app.kubernetes.io/component"] + (f"-{pool}" if pool else "")] += runs(pod)
        return found == pods

    until(f"the pods of {name}", running, 60)
    claims = get(api, "pvc", "-n", "nativelink")
    redis = {"data-nativelink-redis-0"} if name == "staging" else set()
    wanted = {f"data-nativelink-cas-{index}" for index in range(3)} | redis
    assert {claim["metadata"]["name"] for claim in claims} == wanted
    assert {claim["status"]["phase"] for claim in claims} == {"Bound"}
    refused = [event["message"] for event in get(api, "events", "-A") if event["reason"] == "FailedCreate"]
    assert refused == []


POLICY = re.compile(r"^```yaml\n(apiVersion: admissionregistration.*?)^```$", re.DOTALL | re.MULTILINE)


def test_the_documented_policy_refuses_images_without_a_digest(api: Cluster) -> None:
    (policy,) = POLICY.findall((ROOT / "docs/digests.md").read_text())
    tag, digest = "example.com/a:1", f"example.com/a:1@sha256:{'a' * 64}"
    refused = "images without a digest: example.com/a:1"

    def pod(image: str, namespace: str = "nativelink-workers", init: str = digest) -> Object:
        containers = {"containers": [{"name": "a", "image": image}], "initContainers": [{"name": "b", "image": init}]}
        return resource("v1/Pod", "pinned", namespace, spec=containers)

    def said(*arguments: str) -> str:
        command = api.command("-n", "nativelink-workers", *arguments)
        return subprocess.run(command, capture_output=True, text=True, check=False).stderr

    debug = ("debug", "pod/pinned", "--profile=restricted", "--attach=false")
    assert judged(api, pod(tag)) == "", "nothing else refuses it"
    api.run("apply", "-f", "-", stdin=policy)
    try:
        until("the policy", lambda: refused in judged(api, pod(tag)), 30)
        assert refused in judged(api, pod(digest, init=tag))
        assert judged(api, pod(tag, "default")) == ""
        api.apply(pod(digest))
        assert refused in said("set", "image", "pod/pinned", f"a={tag}")
        assert refused in said(*debug, f"--image={tag}")
        assert said(*debug, f"--image={digest}") == ""
    finally:
        api.run("delete", "-f", "-", stdin=policy)
        api.run("delete", "pod", "pinned", "-n", "nativelink-workers", "--ignore-not-found")


COPY = re.compile(r"^```yaml\n(apiVersion: batch.*?)^```$", re.DOTALL | re.MULTILINE)


def test_the_documented_copy_to_a_bucket_keeps_to_pod_security(api: Cluster) -> None:
    (text,) = COPY.findall((ROOT / "docs/object-store.md").read_text())
    job, policy = yaml.safe_load_all(text)
    assert judged(api, job, policy) == ""
    del job["spec"]["template"]["spec"]["securityContext"]
    assert "would violate PodSecurity" in judged(api, job), "the counter-run"


def nodes_of(api: Cluster, namespace: str, component: str) -> list[str]:
    """Return the nodes of a component's running pods that are not being deleted, sorted."""
    pods = get(api, "pods", "-n", namespace, "-l", f"app.kubernetes.io/component={component}")
    return sorted(pod["spec"]["nodeName"] for pod in pods if runs(pod))


def test_cas_pods_are_on_three_nodes_and_have_the_priority(api: Cluster) -> None:
    """The pods are those of the tree that the test above has applied last."""
    assert len(set(nodes_of(api, "nativelink", "cas"))) == 3
    pods = get(api, "pods", "-n", "nativelink", "-l", "app.kubernetes.io/component in (cas, scheduler, redis)")
    assert {pod["spec"]["priority"] for pod in pods} == {1_000_000}
    workers = get(api, "pods", "-n", "nativelink-workers")
    assert {pod["spec"]["priority"] for pod in workers} == {0}


@pytest.mark.parametrize(("apart", "together"), [(True, False), (False, True)])
def test_workers_keep_off_the_nodes_of_the_control_plane(api: Cluster, apart: bool, together: bool) -> None:
    """The counter-run is without the variable: more workers than nodes then share the nodes."""
    pools = [{"name": "apart", "scaling": "none", "min_replicas": 12, "resources": {"requests": {"cpu": "1"}}}]
    variables = {"nativelink_worker_pools": pools, "nativelink_workers_apart": apart}
    deployment = find(objects_of(render.tree(values_of(**variables))), "Deployment", "nativelink-worker-apart")
    api.apply(deployment)
    selector = "nativelink-gitops/pool=apart"
    try:

        def placed() -> list[str]:
            pods = get(api, "pods", "-n", "nativelink-workers", "-l", selector)
            return [pod["spec"]["nodeName"] for pod in pods if pod["spec"].get("nodeName")]

        until("12 workers to have nodes", lambda: len(placed()) == 12, 150)
        control_plane = {node for part in ("cas", "scheduler", "redis") for node in nodes_of(api, "nativelink", part)}
        assert bool(control_plane & set(placed())) is together
    finally:
        api.run("delete", "deployment", "nativelink-worker-apart", "-n", "nativelink-workers")


def test_a_single_scheduler_leaves_a_lost_node_soon(api: Cluster) -> None:
    """The counter-run is a Deployment without our tolerations, which Kubernetes keeps there for five minutes."""
    spaces = {"nativelink_priority_classes": False}
    ours = find(objects_of(render.tree(values_of(**spaces))), "Deployment", "nativelink-scheduler")
    # Both run on one node, so that both lose it at once.
    node = get(api, "nodes")[0]["metadata"]["name"]
    for name in ("soon", "late"):
        deployment = yaml.safe_load(yaml.safe_dump(ours))
        deployment["metadata"]["name"] = name
        template = deployment["spec"]["template"]
        for labels in (deployment["spec"]["selector"]["matchLabels"], template["metadata"]["labels"]):
            labels["app.kubernetes.io/component"] = name
        field = {"key": "metadata.name", "operator": "In", "values": [node]}
        weight = {"weight": 100, "preference": {"matchFields": [field]}}
        template["spec"]["affinity"] = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [weight]}}
        if name == "late":
            del template["spec"]["tolerations"]
        api.apply(deployment)
    try:
        for name in ("soon", "late"):
            until(f"{name} on {node}", lambda name=name: nodes_of(api, "nativelink", name) == [node], 60)
        api.run("label", "node", node, f"{LABEL}-")  # kwok manages only nodes with this label
        # The node controller writes this about a node that has been silent for 50 seconds, or 200 with kwokctl.
        lost = {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}
        patch = yaml.safe_dump({"status": {"conditions": [lost]}})
        api.run("patch", "node", node, "--subresource=status", "--type=strategic", "--patch", patch)
        until("soon on another node", lambda: nodes_of(api, "nativelink", "soon") not in ([], [node]), 90)
        assert nodes_of(api, "nativelink", "late") == [node]
    finally:
        api.run("label", "--overwrite", "node", node, f"{LABEL}=fake")
        api.run("delete", "deployment", "soon", "late", "-n", "nativelink")


@pytest.mark.parametrize(
    ("name", "violation"),
    [
        ("scheduler", {"runAsNonRoot": None}),  # restricted asks for it
        ("scheduler", {"seccompProfile": None}),
        ("worker-default", {"seccompProfile": {"type": "Unconfined"}}),  # baseline refuses it
    ],
)
def test_a_pod_that_violates_pod_security_is_refused(api: Cluster, name: str, violation: Object) -> None:
    """The counter-run of the test in which the controllers make the pods: with one more field they could not."""
    objects = objects_of(render.tree(values_of()))
    deployment = find(objects, "Deployment", f"nativelink-{name}")
    pod = {"apiVersion": "v1", "kind": "Pod", **deployment["spec"]["template"]}
    pod["metadata"] |= {"name": "violating", "namespace": deployment["metadata"]["namespace"]}
    api.apply(find(objects, "ServiceAccount", pod["spec"]["serviceAccountName"]))
    assert judged(api, pod) == ""
    pod["spec"]["securityContext"] |= violation
    assert "violates PodSecurity" in judged(api, pod)

"""Provisioning on a real node: releases of KEDA, an API server that stops, and volumes with data.

The tests share one cluster and run in the order of the file. The images of KEDA's previous version are stand-ins, with
the binaries of the current version.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed import components, manifests, pins
from testbed.cluster import Cluster, ClusterError
from testbed.waiting import patient, until
from testkit.git_server import address_for
from testkit.playbooks import ROOT, Run, finish
from testkit.site import SMALL, Site, pool

PREVIOUS, CURRENT = (pins.versions()[component] for component in ("keda-previous", "keda"))
METRICS = "v1beta1.external.metrics.k8s.io"
CAS = ("-n", "nativelink", "get", "statefulset", "nativelink-cas", "-o")

Object = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """A cluster with a real node, which has no image of KEDA yet, and the checkout that describes it."""

    where: Cluster
    site: Site

    def bootstrap(self, version: str, manifest: Path | None = None, **variables: object) -> Run:
        """Run the main job with a version of KEDA."""
        found = {"keda_version": version, "keda_manifest": str(manifest or manifests.path("keda", version))}
        return self.site.run("-e", json.dumps(found | variables))

    def begun(self, version: str, **variables: object) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """Start the main job, and do not wait for its end."""
        found = {"keda_version": version, "keda_manifest": str(manifests.path("keda", version))}
        return self.site.started("-e", json.dumps(found | variables))

    def has(self, *what: str) -> bool:
        """Return True if an object (arguments of ``kubectl get``) exists, and False without an API server."""
        try:
            return bool(self.where.run("get", *what, "--ignore-not-found", "-o", "name"))
        except ClusterError:
            return False

    def items(self, kind: str, namespace: str) -> list[Object]:
        return list(json.loads(self.where.run("-n", namespace, "get", kind, "-o", "json"))["items"])

    def fingerprint(self) -> dict[str, tuple[str, int]]:
        """Return UID and generation of NativeLink's objects, one of which differs after a replacement or a change."""
        found = {}
        for namespace in ("nativelink", "nativelink-workers"):
            for each in self.items("pods,deployments,statefulsets,configmaps,services,networkpolicies", namespace):
                metadata = each["metadata"]
                found[f"{each['kind']} {metadata['name']}"] = (metadata["uid"], metadata.get("generation", 0))
        return found

    def apply_tree(self) -> str:
        """Apply the tree as an engine does."""
        return self.where.run("apply", "--server-side", "--field-manager=engine", "-k", str(self.site.tree_of("site")))

    def rolled_out(self) -> None:
        self.where.rolled_out("nativelink", "statefulset/nativelink-cas", "deployment/nativelink-scheduler")
        self.where.rolled_out("nativelink-workers", "deployment/nativelink-worker-default")


@pytest.fixture(scope="module")
def stage(real: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    # This class is like local-path, but allows volumes to grow. The test stands in for the driver that resizes.
    real.apply(
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": "growing"},
            "provisioner": "rancher.io/local-path",
            "volumeBindingMode": "WaitForFirstConsumer",
            "allowVolumeExpansion": True,
        }
    )
    site = Site.make(tmp_path_factory.mktemp("site") / "checkout")
    variables = SMALL | {
        "storage_classes_list": [{"name": "growing", "preset": "existing"}],
        "nativelink_worker_pools": [pool("default")],
        "keda_install": "release",
        "keda_wait_for_metrics_api": True,
    }
    site.add("site", real, **variables)
    return Stage(real, site)


# An API server that stops


@pytest.fixture(scope="module")
def ended(stage: Stage) -> Run:
    """Run the main job, stop the API server in the middle, and return the result."""
    with stage.begun(PREVIOUS, keda_wait_timeout=60) as run:
        until("the run to begin with KEDA", lambda: stage.has("namespace", "keda"), 180)
        stage.where.stop_api()
        found = finish(run, stage.site.log)
    stage.where.start_api()
    return found


@pytest.fixture(scope="module")
def waited(stage: Stage, ended: Run) -> Run:
    """Run the main job again, and restart the API server while the job waits for pods without images."""

    def blocked() -> bool:
        if not stage.has("apiservice", METRICS):
            return False
        states = [
            status["state"].get("waiting", {}).get("reason")
            for each in stage.items("pods", "keda")
            for status in each["status"].get("containerStatuses", ())
        ]
        # The other two pods wait for the certificates of the operator.
        return len(states) == 3 and bool({*states} & {"ErrImagePull", "ImagePullBackOff"})

    with stage.begun(PREVIOUS) as run:
        until("KEDA's operator to lack its image", blocked, 180)
        stage.where.stop_api()
        stage.where.start_api()
        stage.where.load(*components.images_of("keda-previous"))
        return finish(run, stage.site.log)


def test_a_run_that_loses_its_api_server_fails_and_says_where(ended: Run) -> None:
    assert ended.status == 2
    (said,) = (line for line in ended.summary["site"].splitlines() if "  failed  " in line)
    # The run was either applying objects or waiting for CustomResourceDefinitions when the API server stopped.
    waiting = r"(waited 60 s for CustomResourceDefinition [a-z.]+\.keda\.sh to be established.*: )?"
    away = r"the API server https://127\.0\.0\.1:[0-9]+ does not answer "
    assert re.search(f" cluster_context: Install KEDA: {waiting}{away}", said)
    assert said.endswith("start the cluster, or correct its kubeconfig")


def test_a_run_waits_for_an_api_server_that_is_restarted(waited: Run) -> None:
    assert waited.status == 0, waited.output
    assert f"keda {PREVIOUS}: installed" in waited.summary["site"]


@pytest.mark.usefixtures("waited")
def test_the_next_run_changes_nothing(stage: Stage) -> None:
    again = stage.bootstrap(PREVIOUS)
    assert again.status == 0
    assert again.changed == 0
    assert f"keda {PREVIOUS}: unchanged" in again.summary["site"]


# KEDA


@pytest.mark.usefixtures("waited")
def test_keda_really_runs(stage: Stage) -> None:
    pods = stage.items("pods", "keda")
    assert {each["spec"]["nodeName"] for each in pods} == {"real-1"}
    assert sorted(each["metadata"]["labels"]["app"] for each in pods) == [
        "keda-admission-webhooks",
        "keda-metrics-apiserver",
        "keda-operator",
    ]
    # The adapter answers through the API server.
    listed = json.loads(stage.where.run("get", "--raw", "/apis/external.metrics.k8s.io/v1beta1"))
    assert listed["kind"] == "APIResourceList"

    def scaled(name: str) -> Object:
        trigger = {"type": "cron", "metadata": {"timezone": "UTC", "start": "0 1 * * *", "end": "0 2 * * *"}}
        trigger["metadata"]["desiredReplicas"] = "1"
        return {
            "apiVersion": "keda.sh/v1alpha1",
            "kind": "ScaledObject",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"scaleTargetRef": {"name": "nothing"}, "triggers": [trigger]},
        }

    stage.where.apply(scaled("first"))
    # Only the webhook knows that two ScaledObjects may not scale one Deployment.
    with pytest.raises(ClusterError, match=r"the workload 'nothing' of type 'apps/v1\.Deployment' is already managed"):
        stage.where.apply(scaled("second"))
    # The operator sees the ScaledObject that the webhook accepted.
    reason = ("-o", 'jsonpath={.status.conditions[?(@.type=="Ready")].reason}')
    until(
        "the operator to look at a ScaledObject",
        lambda: bool(stage.where.run("-n", "default", "get", "scaledobject", "first", *reason)),
        30,
    )
    stage.where.run("-n", "default", "delete", "scaledobject", "first", f"--timeout={patient(30)}s")


@pytest.fixture(scope="module")
def running(stage: Stage, waited: Run) -> dict[str, tuple[str, int]]:
    """Apply the tree, wait until NativeLink runs, and return its fingerprint."""
    assert waited.status == 0
    stage.apply_tree()
    stage.rolled_out()
    return stage.fingerprint()


def test_a_failed_upgrade_tells_the_pods_reason_and_leaves_nativelink_alone(
    stage: Stage, running: dict[str, tuple[str, int]], tmp_path: Path
) -> None:
    broken = tmp_path / "keda.yaml"
    text = manifests.path("keda", CURRENT).read_text()
    broken.write_text(text.replace(f"/kedacore/keda:{CURRENT}", "/kedacore/keda:9.9.9"))
    assert broken.read_text() != text
    stage.where.load(*components.images_of("keda"))
    tree = stage.site.files()

    failed = stage.bootstrap(CURRENT, broken, keda_wait_timeout=45)
    assert failed.status == 2
    (said,) = (line for line in failed.summary["site"].splitlines() if "  failed  " in line)
    assert "keda_version: waited 45 s for Deployment keda/keda-operator to be available" in said
    assert ": pod keda-operator-" in said
    assert "keda-operator: ImagePullBackOff " in said or "keda-operator: ErrImagePull " in said
    assert "ghcr.io/kedacore/keda:9.9.9" in said
    assert "; fix that, or correct keda_version or keda_manifest, and run again" in said

    assert stage.fingerprint() == running
    assert stage.site.files() == tree
    # The old operator still serves, and the metrics API that depends on it is available.
    pods = [each for each in stage.items("pods", "keda") if each["metadata"]["labels"]["app"] == "keda-operator"]
    assert sorted(each["status"]["containerStatuses"][0]["ready"] for each in pods) == [False, True]
    stage.where.run("wait", "--for=condition=Available", f"apiservice/{METRICS}", "--timeout=0s")


def test_a_run_with_the_right_version_completes_the_upgrade(stage: Stage, running: dict[str, tuple[str, int]]) -> None:
    upgraded = stage.bootstrap(CURRENT)
    assert upgraded.status == 0, upgraded.output
    pods = stage.items("pods", "keda")
    assert {each["spec"]["containers"][0]["image"].rpartition(":")[2] for each in pods} == {CURRENT}
    stage.where.run("wait", "--for=condition=Available", f"apiservice/{METRICS}", "--timeout=0s")
    again = stage.bootstrap(CURRENT)
    assert (again.status, again.changed) == (0, 0)
    assert f"keda {CURRENT}: unchanged" in again.summary["site"]
    assert stage.fingerprint() == running


def test_the_webhook_of_keda_does_not_warn_about_the_committed_pools(stage: Stage) -> None:
    """The counter-run is a cooldown of a pool that never goes to zero, which KEDA calls not relevant."""

    def warnings(scaled: Object) -> str:
        command = stage.where.command("apply", "--server-side", "--dry-run=server", "-f", "-")
        done = subprocess.run(command, input=yaml.safe_dump(scaled), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stderr

    paths = sorted((ROOT / "clusters").glob("*/rendered/worker/*/scaledobject.yaml"))
    assert len(paths) == 5  # staging has two pools
    pools = [yaml.safe_load(path.read_text()) for path in paths]
    assert [warnings(each) for each in pools] == [""] * 5
    pools[0]["spec"]["cooldownPeriod"] = 300
    assert "CooldownPeriod is configured but is not relevant" in warnings(pools[0])


# Volumes


def field(number: int, value: int | str | bytes) -> bytes:
    """Encode a field of a protobuf message (https://protobuf.dev/programming-guides/encoding/)."""

    def varint(rest: int) -> bytes:
        return bytes([rest]) if rest < 128 else bytes([rest & 127 | 128]) + varint(rest >> 7)

    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    content = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(content)) + content


@dataclass(frozen=True)
class Cache:
    """The CAS, as a client of the Remote Execution API sees it."""

    address: str
    folder: Path

    def _call(self, method: str, message: bytes) -> bytes:
        (self.folder / "message").write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
        service = "build.bazel.remote.execution.v2.ContentAddressableStorage"
        command = ["curl", "-sS", "-m", "10", "--http2-prior-knowledge", "-H", "content-type: application/grpc"]
        command += ["-H", "te: trailers", "--data-binary", f"@{self.folder / 'message'}"]
        url = f"http://{self.address}:50051/{service}/{method}"
        return subprocess.run([*command, url], capture_output=True, check=True).stdout

    def put(self, blob: bytes) -> None:
        digest = field(1, hashlib.sha256(blob).hexdigest()) + field(2, len(blob))
        self._call("BatchUpdateBlobs", field(1, "main") + field(2, field(1, digest) + field(2, blob)))

    def has(self, blob: bytes) -> bool:
        digest = field(1, hashlib.sha256(blob).hexdigest()) + field(2, len(blob))
        return blob in self._call("BatchReadBlobs", field(1, "main") + field(2, digest))


@pytest.fixture(scope="module")
def cas(stage: Stage, running: dict[str, tuple[str, int]], tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Return the running CAS after this machine is allowed to reach it."""
    assert running
    rule = {"from": [{"ipBlock": {"cidr": f"{address_for(stage.where)}/32"}}]}
    stage.where.apply(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "this-machine", "namespace": "nativelink"},
            "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [rule]},
        }
    )
    found = Cache(stage.where.service_address("nativelink", "nativelink-cas"), tmp_path_factory.mktemp("cas"))
    until("the CAS to answer", answers(found), 20)
    return found


def answers(cas: Cache) -> Callable[[], bool]:
    def check() -> bool:
        try:
            return not cas.has(b"a blob that was never stored")
        except subprocess.CalledProcessError:
            return False

    return check


BLOB = b"a blob that has to survive"


def test_blobs_survive_the_restart_of_their_pod(stage: Stage, cas: Cache) -> None:
    assert not cas.has(BLOB)
    cas.put(BLOB)
    assert cas.has(BLOB)
    before = stage.where.run("-n", "nativelink", "get", "pod", "nativelink-cas-0", "-o", "jsonpath={.metadata.uid}")
    stage.where.run("-n", "nativelink", "delete", "pod", "nativelink-cas-0")
    stage.rolled_out()
    after = stage.where.run("-n", "nativelink", "get", "pod", "nativelink-cas-0", "-o", "jsonpath={.metadata.uid}")
    assert after != before
    until("the CAS to answer again", answers(cas), 20)
    assert cas.has(BLOB)
    # The counter-run: the CAS does not have a blob that was never stored.
    assert not cas.has(BLOB + b"!")


def test_volumes_grow_as_documented(stage: Stage, cas: Cache) -> None:
    where, claim = stage.where, "data-nativelink-cas-0"

    def of(kind: str, name: str, path: str) -> str:
        return where.run("-n", "nativelink", "get", kind, name, "-o", f"jsonpath={{{path}}}")

    pod, volume = of("pod", "nativelink-cas-0", ".metadata.uid"), of("pvc", claim, ".spec.volumeName")
    stage.site.set("site", nativelink_cas_volume_size="2Gi", nativelink_allow_changes=["cas_volume_size"])
    stage.site.playbook("render")
    # The counter-run: the API server refuses to change the size in the running StatefulSet.
    with pytest.raises(ClusterError, match="updates to statefulset spec for fields other than"):
        stage.apply_tree()
    assert of("pvc", claim, ".spec.resources.requests.storage") == "1Gi"

    # These are the steps of docs/changes.md, without those for an engine, which does not run here.
    grown = '{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}'
    expansion = ("patch", "storageclass", "growing", "-p")
    where.run(*expansion, '{"allowVolumeExpansion":false}')
    with pytest.raises(ClusterError, match="storageclass that provisions the pvc must support resize"):
        where.run("-n", "nativelink", "patch", "pvc", claim, "-p", grown)
    where.run(*expansion, '{"allowVolumeExpansion":true}')
    where.run("-n", "nativelink", "patch", "pvc", claim, "-p", grown)
    where.run("-n", "nativelink", "delete", "statefulset", "nativelink-cas", "--cascade=orphan")
    assert of("pod", "nativelink-cas-0", ".metadata.uid") == pod
    until("the pod to have no owner", lambda: not of("pod", "nativelink-cas-0", ".metadata.ownerReferences"), 20)
    assert cas.has(BLOB)

    # The test stands in for a CSI driver, because none is here to resize the volume.
    where.run("patch", "pv", volume, "-p", '{"spec":{"capacity":{"storage":"2Gi"}}}')
    where.run(
        *("-n", "nativelink", "patch", "pvc", claim, "--subresource=status"),
        *("-p", '{"status":{"capacity":{"storage":"2Gi"}}}'),
    )

    stage.apply_tree()
    owner = where.run(*CAS, "jsonpath={.metadata.uid}")
    # The StatefulSet first adopts the running pod, and then replaces it, because its stores grow too. The pod's preStop
    # hook pauses, which leaves time to see the adoption.
    took = ("-n", "nativelink", "get", "pod", "nativelink-cas-0", "-o")
    pair = "jsonpath={.metadata.uid} {.metadata.ownerReferences[0].uid}"
    until("the new StatefulSet to take the pod over", lambda: where.run(*took, pair) == f"{pod} {owner}", 8)
    stage.rolled_out()
    assert where.run(*took, pair).endswith(f" {owner}")
    assert where.run(*CAS, "jsonpath={.spec.volumeClaimTemplates[0].spec.resources.requests.storage}") == "2Gi"
    assert of("pvc", claim, ".spec.volumeName") == volume
    assert of("pvc", claim, ".status.capacity.storage") == "2Gi"
    until("the CAS to answer again", answers(cas), 20)
    assert cas.has(BLOB)

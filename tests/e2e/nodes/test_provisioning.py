"""Provisioning on a real node: releases of KEDA, and volumes with data.

The tests run in the order of the file. The images of KEDA's previous version are stand-ins, with the binaries of the
current version.
"""

import contextlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed import manifests, pins
from testbed.cluster import Cluster, ClusterError
from testbed.waiting import until
from testkit.farm import Farm, fingerprint, load_images, this_machine
from testkit.playbooks import ROOT, Run
from testkit.site import SMALL, Site, pool
from testkit.trees import resource

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
        found["keda_manifest_sha256"] = ""  # of what is made here, and not the release's
        return self.site.run("-e", json.dumps(found | variables))

    def items(self, kind: str, namespace: str) -> list[Object]:
        return list(json.loads(self.where.run("-n", namespace, "get", kind, "-o", "json"))["items"])

    def fingerprint(self) -> dict[str, str]:
        kinds = "pods,deployments,statefulsets,configmaps,services,networkpolicies"
        return fingerprint(self.where, "nativelink", "nativelink-workers", kinds=kinds)

    @property
    def farm(self) -> Farm:
        return Farm(self.where, "nativelink", self.site.trees / "site")


@pytest.fixture(scope="module")
def stage(real: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    # This class is like local-path, but allows volumes to grow. The test stands in for the driver that resizes.
    growing = {"volumeBindingMode": "WaitForFirstConsumer", "allowVolumeExpansion": True}
    real.apply(resource("storage.k8s.io/v1/StorageClass", "growing", provisioner="rancher.io/local-path", **growing))
    site = Site.make(tmp_path_factory.mktemp("site") / "checkout")
    variables = SMALL | {
        "storage_classes_list": [{"name": "growing", "preset": "existing"}],
        "nativelink_worker_pools": [pool("default")],
        "keda_install": "release",
        "keda_wait_for_metrics_api": True,
    }
    site.add("site", real, **variables)
    return Stage(real, site)


@pytest.fixture(scope="module")
def running(stage: Stage) -> dict[str, str]:
    """Install the previous KEDA, apply the tree, wait until NativeLink runs, and return its fingerprint."""
    load_images(stage.where, "keda-previous")
    installed = stage.bootstrap(PREVIOUS)
    assert installed.status == 0, installed.output
    assert f"keda {PREVIOUS}: installed" in installed.summary["site"]
    stage.farm.apply_folder()
    stage.farm.ready("deployment/nativelink-worker-default")
    return stage.fingerprint()


def test_a_failed_upgrade_tells_the_pods_reason_and_leaves_nativelink_alone(
    stage: Stage, running: dict[str, str], tmp_path: Path
) -> None:
    broken = tmp_path / "keda.yaml"
    text = manifests.path("keda", CURRENT).read_text()
    broken.write_text(text.replace(f"/kedacore/keda:{CURRENT}", "/kedacore/keda:9.9.9"))
    assert broken.read_text() != text
    load_images(stage.where, "keda")
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


def test_a_run_with_the_right_version_completes_the_upgrade(stage: Stage, running: dict[str, str]) -> None:
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


def test_volumes_grow_as_documented(stage: Stage, running: dict[str, str]) -> None:
    where, claim = stage.where, "data-nativelink-cas-0"
    where.apply(this_machine(where, "nativelink"))
    client = stage.farm.client()

    def result() -> str:
        """Ask the cache for the result of an action, and run the action if it has none, with another result."""
        return client.act("date +%s%N # {salt}", "--lookup", "--salt=first", pool="default")

    def kept() -> bool:
        """Return True if the cache has the first result, and False while it does not answer."""
        with contextlib.suppress(AssertionError):
            return result() == written
        return False

    def of(kind: str, name: str, path: str) -> str:
        return where.run("-n", "nativelink", "get", kind, name, "-o", f"jsonpath={{{path}}}")

    written = result()
    assert written.startswith("ok ")
    pod, volume = of("pod", "nativelink-cas-0", ".metadata.uid"), of("pvc", claim, ".spec.volumeName")
    stage.site.set("site", nativelink_cas_volume_size="2Gi", nativelink_allow_changes=["cas_volume_size"])
    stage.site.playbook("render")
    # The counter-run: the API server refuses to change the size in the running StatefulSet.
    with pytest.raises(ClusterError, match="updates to statefulset spec for fields other than"):
        stage.farm.apply_folder()
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
    assert kept()

    # The test stands in for a CSI driver, because none is here to resize the volume.
    where.run("patch", "pv", volume, "-p", '{"spec":{"capacity":{"storage":"2Gi"}}}')
    where.run(
        *("-n", "nativelink", "patch", "pvc", claim, "--subresource=status"),
        *("-p", '{"status":{"capacity":{"storage":"2Gi"}}}'),
    )

    stage.farm.apply_folder()
    owner = where.run(*CAS, "jsonpath={.metadata.uid}")
    # The StatefulSet first adopts the running pod, and then replaces it, because its stores grow too. The pod's preStop
    # hook pauses, which leaves time to see the adoption.
    took = ("-n", "nativelink", "get", "pod", "nativelink-cas-0", "-o")
    pair = "jsonpath={.metadata.uid} {.metadata.ownerReferences[0].uid}"
    until("the new StatefulSet to take the pod over", lambda: where.run(*took, pair) == f"{pod} {owner}", 8)
    stage.farm.ready("deployment/nativelink-worker-default")
    assert where.run(*took, pair).endswith(f" {owner}")
    assert where.run(*CAS, "jsonpath={.spec.volumeClaimTemplates[0].spec.resources.requests.storage}") == "2Gi"
    assert of("pvc", claim, ".spec.volumeName") == volume
    assert of("pvc", claim, ".status.capacity.storage") == "2Gi"
    until("the cache to have the result", kept, 20)

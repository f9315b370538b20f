"""The cluster and the tree after `bootstrap`."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

Kubectl = Callable[..., Any]
TREE = Path(__file__).parents[3] / ".testbed" / "molecule" / "clusters" / "molecule"


@pytest.mark.parametrize(("namespace", "level"), [("nativelink", "restricted"), ("nativelink-workers", "baseline")])
def test_namespaces_enforce_pod_security(kubectl: Kubectl, namespace: str, level: str) -> None:
    labels = kubectl("get", "namespace", namespace)["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == level
    assert labels["pod-security.kubernetes.io/enforce-version"] == "v1.31"
    assert labels["pod-security.kubernetes.io/warn"] == level


def test_the_password_of_redis_is_in_the_cluster_only(host: Host, kubectl: Kubectl) -> None:
    secret = kubectl("get", "secret", "nativelink-redis", "--namespace=nativelink")
    assert list(secret["data"]) == ["password"]
    encoded = secret["data"]["password"]
    assert host.file(str(TREE / "rendered" / "kustomization.yaml")).is_file
    for password in (base64.b64decode(encoded).decode(), encoded):
        # 1: grep searched everything and found nothing.
        assert host.run("grep -rF -e %s %s", password, str(TREE)).rc == 1


@pytest.mark.parametrize(
    ("namespace", "deployment"),
    [
        ("keda", "keda-operator"),
        ("keda", "keda-metrics-apiserver"),
        ("envoy-gateway-system", "envoy-gateway"),
        ("flux-system", "source-controller"),
        ("flux-system", "kustomize-controller"),
    ],
)
def test_controllers_are_available(kubectl: Kubectl, namespace: str, deployment: str) -> None:
    conditions = kubectl("get", "deployment", deployment, f"--namespace={namespace}")["status"]["conditions"]
    assert {"type": "Available", "status": "True"}.items() <= next(
        condition for condition in conditions if condition["type"] == "Available"
    ).items()


def test_flux_is_pointed_at_the_tree_and_would_orphan_it(kubectl: Kubectl) -> None:
    found = kubectl("get", "kustomizations.kustomize.toolkit.fluxcd.io", "--namespace=flux-system")["items"]
    assert len(found) == 1
    assert found[0]["spec"]["path"].strip("./") == "clusters/molecule"
    assert found[0]["spec"]["deletionPolicy"] == "Orphan"
    assert "postBuild" not in found[0]["spec"]


def test_both_pools_are_rendered(host: Host) -> None:
    assert host.file(str(TREE / "kustomization.yaml")).is_file
    for pool in ("default", "large"):
        assert host.file(str(TREE / "rendered" / "worker" / pool / "deployment.yaml")).contains(
            f"nativelink-worker-{pool}"
        )


def test_the_cluster_takes_the_tree(kubectl: Kubectl) -> None:
    said = kubectl("apply", "--server-side", "--dry-run=server", "-k", str(TREE))
    assert "deployment.apps/nativelink-worker-large serverside-applied (server dry run)" in said

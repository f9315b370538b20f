"""What the tests of trees share: a folder, and a cluster."""

from pathlib import Path

import pytest
import yaml

from testbed import manifests
from testbed.cluster import Cluster
from testbed.waiting import patient


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder into which a cluster named `test` is written."""
    return tmp_path / "clusters" / "test"


@pytest.fixture(scope="session")
def api(shared: Cluster) -> Cluster:
    """Return a cluster with the real CRDs, and with the namespaces and the PriorityClass as provisioning makes them."""
    for component in ("keda", "gateway-api", "envoy-gateway", "prometheus-operator", "cert-manager"):
        # Envoy Gateway's release also brings the Gateway API's experimental CRDs, but gateway-api owns these CRDs.
        shared.apply(
            *(
                part
                for part in yaml.load_all(manifests.path(component).read_text(), yaml.CSafeLoader)
                if part
                and part["kind"] == "CustomResourceDefinition"
                and (component == "gateway-api" or not part["metadata"]["name"].endswith("gateway.networking.k8s.io"))
            )
        )
    for name, level in (("nativelink", "restricted"), ("nativelink-workers", "baseline")):
        labels = {"pod-security.kubernetes.io/enforce": level, "pod-security.kubernetes.io/warn": level}
        shared.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    kind = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "value": 1_000_000}
    shared.apply({**kind, "metadata": {"name": "nativelink-control-plane"}})
    shared.run("wait", "--for=condition=Established", "crd", "--all", f"--timeout={patient(60)}s")
    return shared

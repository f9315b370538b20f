from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from testbed import manifests, pins

PINS = pins.versions()
CONTROLLERS = pins.module_set("flux").requires
FLUX = "ghcr.io/fluxcd"
EXPORTER = "registry.k8s.io/kube-state-metrics/kube-state-metrics"
# By component: an object and an image of the manifest.
MANIFESTS = {
    "keda": ("APIService/v1beta1.external.metrics.k8s.io", f"ghcr.io/kedacore/keda:{PINS['keda']}"),
    "keda-previous": ("Deployment/keda-operator", f"ghcr.io/kedacore/keda:{PINS['keda-previous']}"),
    "envoy-gateway": ("Job/eg-gateway-helm-certgen", f"envoyproxy/gateway:{PINS['envoy-gateway']}"),
    **{
        component: ("NetworkPolicy/allow-egress", f"{FLUX}/{name}:{CONTROLLERS[f'github.com/fluxcd/{name}']}")
        for component, name in {"flux": "kustomize-controller", "flux-helm": "helm-controller"}.items()
    },
    "kube-state-metrics": ("Service/kube-state-metrics", f"{EXPORTER}:{PINS['kube-state-metrics']}"),
    "prometheus-operator": ("CustomResourceDefinition/prometheusrules.monitoring.coreos.com", None),
    "argocd": ("StatefulSet/argocd-application-controller", f"quay.io/argoproj/argocd:{PINS['argocd']}"),
    "gateway-api": ("ValidatingAdmissionPolicy/safe-upgrades.gateway.networking.k8s.io", None),
    "local-path": ("StorageClass/local-path", f"rancher/local-path-provisioner:{PINS['local-path']}"),
}


def objects(path: Path) -> list[dict]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the slower one takes minutes for Envoy Gateway's CRDs
    return [found for found in yaml.load_all(path.read_text(), loader) if found]


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_that_of_the_pinned_release(name: str) -> None:
    thing, image = MANIFESTS[name]
    component = name.removesuffix("-previous")
    path = manifests.path(component, PINS[name] if name != component else None)
    found = objects(path)
    pods = [each["spec"]["template"]["spec"] for each in found if "template" in each.get("spec", {})]
    assert image in {container["image"] for pod in pods for container in pod["containers"]} or image is None
    names = [f"{each['kind']}/{each['metadata']['name']}" for each in found]
    assert thing in names
    crds = [name for name in names if name.startswith("CustomResourceDefinition/")]
    assert len(crds) == len(set(crds))
    assert "events-addr" not in path.read_text()  # Flux has no notification-controller here


def test_gateway_api_is_the_standard_channel() -> None:
    annotations = [found["metadata"]["annotations"] for found in objects(manifests.path("gateway-api"))]
    assert {found["gateway.networking.k8s.io/channel"] for found in annotations} == {"standard"}
    assert {found["gateway.networking.k8s.io/bundle-version"] for found in annotations} == {PINS["gateway-api"]}

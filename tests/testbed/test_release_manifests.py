from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import yaml

from testbed import manifests, pins

PINS = pins.versions()
FLUX = pins.module_set("flux").requires


@cache
def objects(path: Path) -> list[dict]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the slower one takes minutes for Envoy Gateway's CRDs
    return [found for found in yaml.load_all(path.read_text(), loader) if found]


def images(path: Path) -> set[str]:
    pods = [found["spec"]["template"]["spec"] for found in objects(path) if "template" in found.get("spec", {})]
    return {container["image"] for pod in pods for container in pod["containers"]}


def names(path: Path, kind: str) -> list[str]:
    return [found["metadata"]["name"] for found in objects(path) if found["kind"] == kind]


def keda(version: str) -> set[str]:
    return {
        f"ghcr.io/kedacore/{name}:{version}" for name in ("keda", "keda-metrics-apiserver", "keda-admission-webhooks")
    }


def flux(engine: str) -> set[str]:
    return {f"ghcr.io/fluxcd/{name}:{FLUX[f'github.com/fluxcd/{name}']}" for name in ("source-controller", engine)}


@pytest.mark.parametrize(
    ("component", "version", "wanted", "has"),
    [
        ("keda", PINS["keda"], keda(PINS["keda"]), "APIService/v1beta1.external.metrics.k8s.io"),
        ("keda", PINS["keda-previous"], keda(PINS["keda-previous"]), "CustomResourceDefinition/scaledobjects.keda.sh"),
        ("envoy-gateway", None, {f"envoyproxy/gateway:{PINS['envoy-gateway']}"}, "Job/eg-gateway-helm-certgen"),
        ("flux", None, flux("kustomize-controller"), "NetworkPolicy/allow-egress"),
        ("flux-helm", None, flux("helm-controller"), "NetworkPolicy/allow-egress"),
        (
            "kube-state-metrics",
            None,
            {f"registry.k8s.io/kube-state-metrics/kube-state-metrics:{PINS['kube-state-metrics']}"},
            "Service/kube-state-metrics",
        ),
        ("prometheus-operator", None, set(), "CustomResourceDefinition/prometheusrules.monitoring.coreos.com"),
    ],
)
def test_a_manifest_is_that_of_the_pinned_release(component: str, version: str | None, wanted: set, has: str) -> None:
    path = manifests.path(component, version)
    kind, name = has.split("/")
    assert images(path) == wanted
    assert name in names(path, kind)
    crds = names(path, "CustomResourceDefinition")
    assert len(crds) == len(set(crds))
    assert "events-addr" not in path.read_text()  # Flux has no notification-controller here


def test_argocd_is_the_core_installation() -> None:
    path = manifests.path("argocd")
    assert f"quay.io/argoproj/argocd:{PINS['argocd']}" in images(path)
    assert names(path, "StatefulSet") == ["argocd-application-controller"]


def test_gateway_api_is_the_standard_channel_with_its_policy() -> None:
    path = manifests.path("gateway-api")
    assert names(path, "ValidatingAdmissionPolicy") == ["safe-upgrades.gateway.networking.k8s.io"]
    annotations = [found["metadata"]["annotations"] for found in objects(path)]
    assert {found["gateway.networking.k8s.io/channel"] for found in annotations} == {"standard"}
    assert {found["gateway.networking.k8s.io/bundle-version"] for found in annotations} == {PINS["gateway-api"]}


def test_a_version_that_is_not_pinned_is_refused() -> None:
    with pytest.raises(KeyError):
        manifests.path("keda", "1.0.0")

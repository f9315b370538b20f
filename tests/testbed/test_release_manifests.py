from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import yaml

from testbed import manifests, pins


@cache
def objects(path: Path) -> list[dict]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the slower one takes minutes for Envoy Gateway's CRDs
    return [found for found in yaml.load_all(path.read_text(), loader) if found]


def images(path: Path) -> set[str]:
    pods = [found["spec"]["template"]["spec"] for found in objects(path) if "template" in found.get("spec", {})]
    return {container["image"] for pod in pods for container in pod["containers"]}


def names(path: Path, kind: str) -> set[str]:
    return {found["metadata"]["name"] for found in objects(path) if found["kind"] == kind}


@pytest.mark.parametrize("pin", ["keda", "keda-previous"])
def test_keda(pin: str) -> None:
    version = pins.versions()[pin]
    assert not version.startswith("v")
    path = manifests.path("keda", version)
    assert path.name == f"keda-{version}.yaml"
    assert images(path) == {
        f"ghcr.io/kedacore/keda:{version}",
        f"ghcr.io/kedacore/keda-metrics-apiserver:{version}",
        f"ghcr.io/kedacore/keda-admission-webhooks:{version}",
    }
    assert names(path, "APIService") == {"v1beta1.external.metrics.k8s.io"}
    assert names(path, "CustomResourceDefinition") == {
        "cloudeventsources.eventing.keda.sh",
        "clustercloudeventsources.eventing.keda.sh",
        "clustertriggerauthentications.keda.sh",
        "scaledjobs.keda.sh",
        "scaledobjects.keda.sh",
        "triggerauthentications.keda.sh",
    }


def test_gateway_api_is_the_standard_channel_with_its_policy() -> None:
    path = manifests.path("gateway-api")
    assert names(path, "ValidatingAdmissionPolicy") == {"safe-upgrades.gateway.networking.k8s.io"}
    annotations = [found["metadata"]["annotations"] for found in objects(path)]
    assert {found["gateway.networking.k8s.io/channel"] for found in annotations} == {"standard"}
    assert {found["gateway.networking.k8s.io/bundle-version"] for found in annotations} == {
        pins.versions()["gateway-api"]
    }


def test_envoy_gateway_has_all_crds_once() -> None:
    path = manifests.path("envoy-gateway")
    assert images(path) == {f"envoyproxy/gateway:{pins.versions()['envoy-gateway']}"}
    crds = [found["metadata"]["name"] for found in objects(path) if found["kind"] == "CustomResourceDefinition"]
    assert len(crds) == len(set(crds))
    assert {"envoyproxies.gateway.envoyproxy.io", "gateways.gateway.networking.k8s.io"} <= set(crds)
    assert names(path, "Namespace") == {"envoy-gateway-system"}
    assert names(path, "Job") == {"eg-gateway-helm-certgen"}


def test_argocd() -> None:
    path = manifests.path("argocd")
    assert f"quay.io/argoproj/argocd:{pins.versions()['argocd']}" in images(path)
    assert names(path, "StatefulSet") == {"argocd-application-controller"}


@pytest.mark.parametrize(("component", "engine"), [("flux", "kustomize-controller"), ("flux-helm", "helm-controller")])
def test_flux_ships_the_two_pinned_controllers_without_events(component: str, engine: str) -> None:
    path = manifests.path(component)
    pinned = pins.module_set("flux").requires
    assert images(path) == {
        f"ghcr.io/fluxcd/source-controller:{pinned['github.com/fluxcd/source-controller']}",
        f"ghcr.io/fluxcd/{engine}:{pinned[f'github.com/fluxcd/{engine}']}",
    }
    assert "events-addr" not in path.read_text()
    assert names(path, "Namespace") == {"flux-system"}
    assert names(path, "NetworkPolicy") == {"allow-egress", "allow-scraping", "allow-webhooks"}


def test_kube_state_metrics() -> None:
    path = manifests.path("kube-state-metrics")
    version = pins.versions()["kube-state-metrics"]
    assert images(path) == {f"registry.k8s.io/kube-state-metrics/kube-state-metrics:{version}"}
    assert names(path, "Service") == names(path, "ClusterRole") == {"kube-state-metrics"}


def test_the_prometheus_operator_has_the_definitions_that_configure_monitoring() -> None:
    path = manifests.path("prometheus-operator")
    assert names(path, "CustomResourceDefinition") == {
        "alertmanagerconfigs.monitoring.coreos.com",
        "podmonitors.monitoring.coreos.com",
        "prometheusrules.monitoring.coreos.com",
        "scrapeconfigs.monitoring.coreos.com",
        "servicemonitors.monitoring.coreos.com",
    }


def test_a_version_that_is_not_pinned_is_refused() -> None:
    with pytest.raises(KeyError):
        manifests.path("keda", "1.0.0")
    with pytest.raises(KeyError):
        manifests.path("istio")

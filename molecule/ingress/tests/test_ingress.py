"""The objects of the role ingress in the cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from testbed import pins

Kubectl = Callable[..., Any]


@pytest.mark.parametrize("name", ["gatewayclasses", "gateways", "grpcroutes", "httproutes"])
def test_gateway_api_has_the_configured_version(kubectl: Kubectl, name: str) -> None:
    found = kubectl("get", "crd", f"{name}.gateway.networking.k8s.io")["metadata"]["annotations"]
    assert found["gateway.networking.k8s.io/bundle-version"] == pins.versions()["gateway-api"]


def test_the_controllers_experimental_kinds_are_left_out(kubectl: Kubectl) -> None:
    found = {each["metadata"]["name"]: each["metadata"] for each in kubectl("get", "crd")["items"]}
    assert "envoyproxies.gateway.envoyproxy.io" in found
    assert not [name for name in found if name.endswith(".gateway.networking.x-k8s.io")]
    channels = [
        each["annotations"]["gateway.networking.k8s.io/channel"]
        for name, each in found.items()
        if name.endswith(".gateway.networking.k8s.io")
    ]
    assert set(channels) == {"standard"}


def test_the_controller_is_available(kubectl: Kubectl) -> None:
    found = kubectl("get", "deployment", "envoy-gateway", "--namespace=envoy-gateway-system")
    assert found["status"]["availableReplicas"] == 1


def test_the_class_belongs_to_the_controller(kubectl: Kubectl) -> None:
    found = kubectl("get", "gatewayclass", "nativelink")
    assert found["spec"]["controllerName"] == "gateway.envoyproxy.io/gatewayclass-controller"


def test_two_proxies_serve_the_class_and_at_most_one_is_disrupted_at_a_time(kubectl: Kubectl) -> None:
    named = kubectl("get", "gatewayclass", "nativelink")["spec"]["parametersRef"]
    assert (named["kind"], named["namespace"], named["name"]) == ("EnvoyProxy", "envoy-gateway-system", "nativelink")
    found = kubectl("get", "envoyproxy", "nativelink", "--namespace=envoy-gateway-system")
    assert found["spec"]["provider"]["kubernetes"]["envoyDeployment"]["replicas"] == 2
    assert found["spec"]["provider"]["kubernetes"]["envoyPDB"] == {"maxUnavailable": 1}
    assert found["spec"]["shutdown"] == {"drainTimeout": "600s"}

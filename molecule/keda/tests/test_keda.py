"""The objects of the role keda in the cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from testbed import pins

Kubectl = Callable[..., Any]
VERSION = pins.versions()["keda"]


@pytest.mark.parametrize("name", ["keda-operator", "keda-metrics-apiserver", "keda-admission"])
def test_deployments_are_available(kubectl: Kubectl, name: str) -> None:
    found = kubectl("get", "deployment", name, "--namespace=keda")
    assert found["status"]["availableReplicas"] == found["spec"]["replicas"]
    assert found["spec"]["template"]["spec"]["containers"][0]["image"].endswith(f":{VERSION}")


def test_every_field_has_our_manager(kubectl: Kubectl) -> None:
    found = kubectl("get", "deployment", "keda-operator", "--namespace=keda", "--show-managed-fields")
    applied = [each["manager"] for each in found["metadata"]["managedFields"] if each["operation"] == "Apply"]
    assert applied == ["nativelink-gitops"]


@pytest.mark.parametrize("name", ["scaledobjects.keda.sh", "triggerauthentications.keda.sh"])
def test_kinds_are_established(kubectl: Kubectl, name: str) -> None:
    conditions = {each["type"]: each["status"] for each in kubectl("get", "crd", name)["status"]["conditions"]}
    assert conditions["Established"] == "True"


def test_the_metrics_api_is_registered(kubectl: Kubectl) -> None:
    service = kubectl("get", "apiservice", "v1beta1.external.metrics.k8s.io")["spec"]["service"]
    assert (service["name"], service["namespace"]) == ("keda-metrics-apiserver", "keda")


def test_the_record_is_complete(kubectl: Kubectl) -> None:
    record = kubectl("get", "configmap", "keda-release", "--namespace=keda")["data"]
    assert (record["version"], record["complete"]) == (VERSION, "true")

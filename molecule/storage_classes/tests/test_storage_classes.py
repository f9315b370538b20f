"""The StorageClasses of the role storage_classes in the cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Kubectl = Callable[..., Any]


@pytest.mark.parametrize(
    ("name", "provisioner", "parameters", "grows", "reclaim"),
    [
        ("local-path", "rancher.io/local-path", {}, False, "Delete"),
        ("gp3", "ebs.csi.aws.com", {"type": "gp3", "encrypted": "true", "iops": "6000"}, True, "Retain"),
        ("pd", "pd.csi.storage.gke.io", {"type": "pd-balanced"}, True, "Delete"),
        ("azure", "disk.csi.azure.com", {"skuName": "Premium_LRS"}, True, "Delete"),
    ],
)
def test_a_class_has_the_fields_of_its_preset(
    kubectl: Kubectl, name: str, provisioner: str, parameters: dict[str, str], grows: bool, reclaim: str
) -> None:
    found = kubectl("get", "storageclass", name)
    assert found["provisioner"] == provisioner
    assert found.get("parameters", {}) == parameters
    assert found["volumeBindingMode"] == "WaitForFirstConsumer"
    assert found["allowVolumeExpansion"] is grows
    assert found["reclaimPolicy"] == reclaim


def test_only_the_configured_class_is_the_default(kubectl: Kubectl) -> None:
    key = "storageclass.kubernetes.io/is-default-class"
    ours = [each["metadata"] for each in kubectl("get", "storageclass")["items"]]
    assert [each["name"] for each in ours if each.get("annotations", {}).get(key) == "true"] == ["gp3"]

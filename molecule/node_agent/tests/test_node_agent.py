"""The objects of the role node_agent in the cluster."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Kubectl = Callable[..., Any]

SPACE = "--namespace=nativelink-node-agent"
FILES = Path(__file__).parents[3] / "roles/node_agent/files"


@pytest.fixture(scope="module")
def pod(kubectl: Kubectl) -> dict[str, Any]:
    """Return the specification of the DaemonSet's pods."""
    return dict(kubectl("get", "daemonset", "node-agent", SPACE)["spec"]["template"]["spec"])


def test_the_selected_nodes_have_a_pod(kubectl: Kubectl) -> None:
    status = kubectl("get", "daemonset", "node-agent", SPACE)["status"]
    assert (status["desiredNumberScheduled"], status["numberReady"]) == (2, 2)  # of six nodes in three zones
    assert {each["spec"]["nodeName"] for each in kubectl("get", "pods", SPACE)["items"]} == {"node-1", "node-4"}


def test_the_namespace_is_privileged_and_isolated(kubectl: Kubectl) -> None:
    labels = kubectl("get", "namespace", "nativelink-node-agent")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "privileged"
    assert labels["app.kubernetes.io/instance"] == "molecule"
    (policy,) = kubectl("get", "networkpolicies", SPACE)["items"]
    assert policy["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_the_pods_have_two_capabilities_and_no_token(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    context = container["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"], "add": ["BPF", "NET_ADMIN"]}
    assert (context["allowPrivilegeEscalation"], context["readOnlyRootFilesystem"]) == (False, True)
    assert "privileged" not in context
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert (pod["serviceAccountName"], pod["automountServiceAccountToken"]) == ("node-agent", False)


def test_one_folder_of_the_node_can_be_written(pod: dict[str, Any]) -> None:
    folders = {each["name"]: each["hostPath"]["path"] for each in pod["volumes"] if "hostPath" in each}
    assert folders == {"cgroup": "/sys/fs/cgroup", "bpf": "/sys/fs/bpf"}
    writable = [each["name"] for each in pod["containers"][0]["volumeMounts"] if not each.get("readOnly")]
    assert writable == ["bpf", "run"]  # the last is an emptyDir


def test_the_pods_tolerate_every_taint(pod: dict[str, Any]) -> None:
    assert {"operator": "Exists"} in pod["tolerations"]


def test_the_configuration_contains_the_committed_files(kubectl: Kubectl) -> None:
    found = kubectl("get", "configmap", "node-agent", SPACE)
    assert found["data"] == {"attach.sh": (FILES / "attach.sh").read_text()}
    assert {name: base64.b64decode(content) for name, content in found["binaryData"].items()} == {
        name: (FILES / name).read_bytes() for name in ("guard.o", "low_latency.o")
    }


def test_the_script_attaches_both_programs(pod: dict[str, Any]) -> None:
    assert pod["containers"][0]["command"][-3:] == ["/run/ready", "guard", "low_latency"]

"""The rules for what users write in Kubernetes' own terms are neither laxer nor stricter than a real API server.

Each case of tests/preflight/reject/kubernetes.yml that has a `server` is rendered in spite of the rules, and the API
server refuses the objects with these words. The rules and the API server both accept the variables in ACCEPTED.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render, validation

from testbed import build, cluster, manifests
from testbed.cluster import Cluster
from testbed.waiting import patient
from testkit.trees import Object, values_of

FILE = Path(__file__).parents[1] / "preflight/reject/kubernetes.yml"
CASES = [case for case in yaml.safe_load(FILE.read_text()) if "server" in case]
POLICY = {"type": "Pods", "value": 1, "periodSeconds": 1}


def pool(**keys: Any) -> dict[str, Any]:
    return {"nativelink_worker_pools": [{"name": "linux", **keys}]}


def hpa(**keys: Any) -> dict[str, Any]:
    scaling = {"nativelink_scaling": "hpa", "nativelink_metrics_namespaces": ["monitoring"]}
    return {**scaling, **pool(**keys)}


def egress(*ports: dict[str, Any]) -> dict[str, Any]:
    return {"nativelink_worker_egress": [{"to": [{"podSelector": {}}], "ports": list(ports)}]}


def limits(**amounts: Any) -> dict[str, Any]:
    return {"limits": {"memory": "16Gi", **amounts}}


ACCEPTED: dict[str, dict[str, Any]] = {
    "every taint": pool(tolerations=[{"operator": "Exists"}]),
    "empty texts of a toleration": pool(tolerations=[{"key": "spot", "operator": "", "value": "", "effect": ""}]),
    "no value of a toleration": pool(tolerations=[{"key": "spot", "operator": "Exists", "value": None}]),
    "seconds below zero": pool(
        tolerations=[{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": -1}]
    ),
    "longest label": pool(node_selector={"a" * 63: "b" * 63, "example.com/a": "", "a_b.c": "A_b.C"}),
    "longest prefix": pool(node_selector={f"{'a.' * 126}b/c": "d"}),
    "upper case in an annotation's prefix": pool(annotations={"Example.com/Team": "any text: \n é"}),
    "limits alone": pool(resources=limits(**{"nvidia.com/gpu": 1})),
    "whole numbers in other forms": pool(
        resources={"requests": {"nvidia.com/gpu": "2000m"}, **limits(**{"nvidia.com/gpu": "2", "a.b/c": "0.5k"})}
    ),
    "no gpu": pool(resources=limits(**{"nvidia.com/gpu": 0, "example.com/x": "1e3"})),
    "resources of Kubernetes' own domain": pool(
        resources={"requests": {"x.kubernetes.io/y": "1500m", "memory": "1Gi"}}
    ),
    "longest name of a resource": pool(resources=limits(**{f"{'a' * 244}/b": 1})),
    "huge pages": pool(resources=limits(**{"hugepages-2Mi": "4Mi", "hugepages-1Gi": "1Gi", "hugepages-64k": 0})),
    "every peer": {
        "nativelink_client_peers": [{"namespaceSelector": {}}, {"podSelector": {}, "namespaceSelector": {}}]
    },
    "ranges": {
        "nativelink_client_peers": [
            {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8", "192.168.1.1/32"]}},
            {"ipBlock": {"cidr": "2001:db8::/32", "except": ["2001:db8:0:1::/64"]}},
            {"ipBlock": {"cidr": "10.0.0.0/8", "except": None}},
        ]
    },
    "expressions": {
        "nativelink_dns_peers": [
            {
                "podSelector": {
                    "matchLabels": {"a": ""},
                    "matchExpressions": [
                        {"key": "a", "operator": "NotIn", "values": ["b", ""]},
                        {"key": "a", "operator": "DoesNotExist", "values": []},
                    ],
                }
            }
        ]
    },
    "any egress": {
        "nativelink_worker_egress": [
            {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.169.254/32"]}}], "ports": None},
            {"to": [{"ipBlock": {"cidr": "::/0", "except": ["fd00:ec2::/32", "fe80::/10"]}}], "ports": [{}]},
            {"to": [{"ipBlock": {"cidr": "169.254.20.10/32"}}]},
        ]
    },
    "ports": egress({"port": 1, "endPort": 65535}, {"port": 7, "endPort": 7, "protocol": "SCTP"}, {"port": None}),
    "names of ports": egress({"port": "a"}, {"port": "0-a"}, {"port": "fifteen-letters"}),
    "longest window": hpa(scale_up={"stabilizationWindowSeconds": 3600}, scale_down={"stabilizationWindowSeconds": 0}),
    "no scaling down": hpa(scale_down={"selectPolicy": "Disabled"}),
    "longest period": hpa(scale_up={"policies": [POLICY, {"type": "Percent", "value": 900, "periodSeconds": 1800}]}),
    "tolerance": {
        **hpa(scale_up={"tolerance": 0.1}, scale_down={"tolerance": "50m"}),
        "preflight_minimum_kubernetes": "1.36",
    },
}


@pytest.fixture(scope="module")
def api() -> Iterator[Cluster]:
    """Start a cluster with both namespaces, and with the definitions of a Prometheus Operator."""
    with cluster.fresh(f"kubernetes-{os.environ.get('PYTEST_XDIST_WORKER', 'tests')}", nodes=1) as fresh:
        for name in ("nativelink", "nativelink-workers"):
            fresh.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        parts = yaml.load_all(manifests.path("prometheus-operator").read_text(), yaml.CSafeLoader)
        fresh.apply(*(part for part in parts if part and part["kind"] == "CustomResourceDefinition"))
        fresh.run("wait", "--for=condition=Established", "crd", "--all", f"--timeout={patient(60)}s")
        yield fresh


def with_connection(variables: dict[str, Any]) -> dict[str, Any]:
    return values_of(cluster_kubeconfig="/k", cluster_context="c", **variables)


@cache
def usual() -> dict[str, str]:
    return dict(render.objects(values_of()))


def changed(name: str, variables: dict[str, Any]) -> list[Object]:
    """Return the objects that differ from those of the defaults, renamed so that messages name the case."""
    texts = [text for path, text in render.objects(values_of(**variables)) if usual().get(path) != text]
    objects = [yaml.load(text, yaml.CSafeLoader) for text in texts]
    # KEDA, which makes an HPA of a ScaledObject, does not run here. The cases have an HPA in its place.
    wanted = [item for item in objects if item["kind"] != "ScaledObject"]
    return [{**item, "metadata": {**item["metadata"], "name": name}} for item in wanted]


def applied(api: Cluster, objects: list[Object]) -> str:
    """Return the API server's answers to the objects, none of which it keeps.

    All objects are in one call, because kubectl is slow.
    """
    command = api.command("apply", "--server-side", "--field-manager=test", "--force-conflicts", "--dry-run=server")
    text = yaml.safe_dump_all(objects)
    return subprocess.run([*command, "-f", "-"], input=text, capture_output=True, text=True, check=False).stderr


@pytest.fixture(scope="module")
def refusals(api: Cluster) -> dict[str, str]:
    """Return the API server's answer to each case."""
    said = applied(api, [item for case in CASES for item in changed(case["name"], case["set"])])
    found: dict[str, str] = {}
    for part in re.split(r"(?m)^(?=Error from server)", said):
        name = re.search(r' "([\w-]+)" is invalid:|\([\w-]+/([\w-]+);', part)
        found[(name[1] or name[2]) if name else ""] = part
    return found


def findings(values: dict[str, Any]) -> list[str]:
    return [str(finding) for finding in validation.static_findings({"test": values})]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_api_server_refuses_what_the_rules_refuse(case: dict[str, Any], refusals: dict[str, str]) -> None:
    assert case["server"] in refusals[case["name"]]


def test_the_api_server_accepts_what_the_rules_accept(api: Cluster) -> None:
    objects = [changed(f"case-{index}", variables) for index, variables in enumerate(ACCEPTED.values())]
    assert all(objects), "a case changes nothing"
    assert applied(api, [item for each in objects for item in each]) == ""


@pytest.mark.parametrize("name", ACCEPTED)
def test_the_rules_accept_the_variables(name: str) -> None:
    assert findings(with_connection(ACCEPTED[name])) == []


TAGS = {"7.4": True, "_": True, "a" * 128: True, "a" * 129: False, "a b": False, "": False, "é": False}


@pytest.mark.parametrize(("tag", "valid"), TAGS.items())
def test_a_tag_is_valid_where_a_tool_for_images_can_read_it(tag: str, valid: bool) -> None:
    """The API server accepts any image, and the node refuses it later."""
    crane = build.binaries({"crane": ("crane",)})["crane"]
    # Nothing listens on port 1, so that crane fails later if it can read the tag.
    done = subprocess.run([crane, "digest", f"127.0.0.1:1/image:{tag}"], capture_output=True, text=True, check=False)
    assert ("could not parse reference" not in done.stderr) == valid
    said = findings(with_connection({"nativelink_redis_version": tag}))
    assert (said == []) == valid

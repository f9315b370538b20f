"""The decisions about a release that need no cluster."""

from __future__ import annotations

import json

import pytest
from ansible_collections.nativelink.gitops.plugins.plugin_utils import release

NAMES = b"""
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, annotations: {made: 2026-11-24}}
data: {equals: =}
---
# only a comment
---
apiVersion: v1
kind: List
items:
- apiVersion: apiextensions.k8s.io/v1
  kind: CustomResourceDefinition
  metadata: {name: gateways.gateway.networking.k8s.io}
- apiVersion: apiextensions.k8s.io/v1
  kind: CustomResourceDefinition
  metadata: {name: envoyproxies.gateway.envoyproxy.io}
- {apiVersion: v1, kind: Namespace, metadata: {name: app}}
"""


def names(found: list[release.Object]) -> list[str]:
    return [each["metadata"]["name"] for each in found]


def test_objects_are_read_as_kubernetes_reads_them() -> None:
    found = release.objects(NAMES)
    assert len(found) == 4
    assert found[0]["data"] == {"equals": "="}
    assert found[0]["metadata"]["annotations"] == {"made": "2026-11-24"}
    json.dumps(found)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"<html>404</html>", "it does not hold Kubernetes objects but '<html>404</html>'"),
        (b"", "it is empty"),
        (b"kind: Job", "an object has no apiVersion, kind or name"),
        (b"a: b: c", "it is not valid YAML"),
    ],
)
def test_content_that_is_not_a_manifest_is_refused(content: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        release.objects(content)


def test_patterns_leave_objects_out() -> None:
    found = release.without(
        release.objects(NAMES), ["CustomResourceDefinition/*.gateway.networking.k8s.io", "Namespace/*"]
    )
    assert names(found) == ["settings", "envoyproxies.gateway.envoyproxy.io"]


def test_namespaces_and_kinds_come_first() -> None:
    first, rest = release.stages(release.objects(NAMES))
    assert names(first) == ["app", "gateways.gateway.networking.k8s.io", "envoyproxies.gateway.envoyproxy.io"]
    assert names(rest) == ["settings"]


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("2.9.0", "2.10.0"),
        ("v1.6.3", "1.7"),
        ("1.7.0-rc.1", "1.7.0"),
        ("1.7.0-rc.2", "1.7.0-rc.10"),
        ("1.7.0-rc.1", "1.7.0-rc.1.1"),
        ("1.7.0-alpha", "1.7.0-beta"),
        ("1.7.0-1", "1.7.0-alpha"),
        ("1.6.9", "1.7.0-rc.1"),
    ],
)
def test_versions_are_ordered_by_number(older: str, newer: str) -> None:
    assert release.version_key(older) < release.version_key(newer)


def test_versions_that_mean_the_same_are_equal() -> None:
    assert release.version_key("v1.7") == release.version_key("1.7.0") == release.version_key("1.7.0+build.5")


def test_a_text_that_is_not_a_version_is_refused() -> None:
    with pytest.raises(ValueError, match="'latest' is not a version"):
        release.version_key("latest")


@pytest.mark.parametrize(
    ("more", "name", "stated"),
    [
        ({}, "keda", set()),
        ({"labels": {"app.kubernetes.io/version": "2.19.0"}}, "keda", {"2.19.0"}),
        ({"labels": {"app.kubernetes.io/version": "latest"}}, "keda", set()),
        ({"annotations": {"gateway.networking.k8s.io/bundle-version": "v1.6.3"}}, "gateway-api", {"v1.6.3"}),
        ({"labels": None, "annotations": None}, "keda", set()),
    ],
)
def test_a_manifest_states_its_version_in_labels_and_annotations(
    more: release.Object, name: str, stated: set[str]
) -> None:
    assert release.stated_versions([{"kind": "ConfigMap", "metadata": {"name": "settings", **more}}], name) == stated


@pytest.mark.parametrize(
    ("image", "name", "stated"),
    [
        ("ghcr.io/kedacore/keda:2.21.0", "keda", {"2.21.0"}),
        ("mirror.example.com:5000/gateway:v1.9.1@sha256:abc", "envoy-gateway", {"v1.9.1"}),
        ("envoyproxy/ratelimit:8.0.0", "envoy-gateway", set()),
        ("ghcr.io/fluxcd/source-controller:v1.9.5", "flux", set()),
        ("ghcr.io/kedacore/keda@sha256:abc", "keda", set()),
        ("mirror.example.com:5000/keda", "keda", set()),
        ("keda:main", "keda", set()),
    ],
)
def test_a_manifest_states_its_version_in_the_tags_of_its_own_images(image: str, name: str, stated: set[str]) -> None:
    pod = {"containers": [{"name": "app", "image": image}]}
    workload = {"kind": "Deployment", "metadata": {"name": "app"}, "spec": {"template": {"spec": pod}}}
    assert release.stated_versions([workload], name) == stated


def deployment(
    generation: int = 2, observed: int = 2, replicas: int = 1, updated: int = 1, available: int = 1
) -> release.Object:
    conditions = [{"type": "Available", "status": "False", "message": "Deployment does not have minimum availability."}]
    status = {
        "observedGeneration": observed,
        "replicas": replicas,
        "updatedReplicas": updated,
        "availableReplicas": available,
    }
    return {
        "kind": "Deployment",
        "metadata": {"name": "app", "generation": generation},
        "spec": {"replicas": 1},
        "status": {**status, "conditions": conditions},
    }


def test_a_deployment_is_ready_when_its_new_pods_are() -> None:
    assert release.not_ready(deployment()) is None
    assert release.not_ready(deployment(observed=1)) == "its controller has not processed it yet"
    assert (
        release.not_ready(deployment(updated=0)) == "0 of 1 pods are up to date and ready"
    )  # the old ones still serve
    assert release.not_ready(deployment(available=0)) == (
        "0 of 1 pods are up to date and ready (Deployment does not have minimum availability.)"
    )
    # The new pod does not start, and the old one still serves.
    assert release.not_ready(deployment(replicas=2)) == "0 of 1 pods are up to date and ready"
    assert release.not_ready(deployment(replicas=2, available=2)) is None
    assert release.not_ready(None) == "it does not exist"


@pytest.mark.parametrize(
    ("live", "held"),
    [
        ({"data": {"a": "1"}, "status": {}}, True),  # an object may have fields that its manifest does not name
        ({"data": {"a": "2"}}, False),
        ({"data": {"a": 1}}, False),
        ({"data": {}}, False),
        ({}, False),
        (None, False),
    ],
)
def test_an_object_that_has_the_fields_of_its_manifest_is_recognized(live: release.Object | None, held: bool) -> None:
    assert release.holds(live, {"data": {"a": "1"}}) is held


@pytest.mark.parametrize(
    ("live", "held"),
    [
        ([{"name": "a", "more": 1}, {"name": "b"}], True),
        ([{"name": "b"}, {"name": "a"}], False),
        ([{"name": "a"}, {"name": "b"}, {"name": "c"}], False),
        ([{"name": "a"}], False),
    ],
)
def test_a_list_has_to_be_the_same(live: list[release.Object], held: bool) -> None:
    assert release.holds(live, [{"name": "a"}, {"name": "b"}]) is held


@pytest.mark.parametrize(
    ("status", "trouble"),
    [
        (
            {
                "containerStatuses": [
                    {"name": "app", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
                ]
            },
            "pod app-1: app: ImagePullBackOff no such image",
        ),
        (
            {
                "conditions": [
                    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/6 nodes"}
                ]
            },
            "pod app-1: Unschedulable 0/6 nodes",
        ),
        ({"containerStatuses": [{"name": "app", "state": {"waiting": {"reason": "ContainerCreating"}}}]}, None),
        ({}, None),
    ],
)
def test_a_pod_says_what_is_wrong(status: release.Object, trouble: str | None) -> None:
    assert release.pod_trouble([{"metadata": {"name": "app-1"}, "status": status}]) == trouble

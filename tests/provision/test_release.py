"""The decisions about a release that need no cluster."""

import json
from itertools import pairwise
from typing import Any

import pytest
from ansible_collections.nativelink.gitops.plugins.plugin_utils import release


def test_objects_are_read_as_kubernetes_reads_them() -> None:
    found = release.objects(b"""
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, annotations: {made: 2026-11-24}}
data: {equals: =}
---
# only a comment
---
apiVersion: v1
kind: List
items: [{apiVersion: v1, kind: Namespace, metadata: {name: app}}]
""")
    assert [each["metadata"]["name"] for each in found] == ["settings", "app"]
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


@pytest.mark.parametrize(
    "versions",
    [
        "2.9.0 < 2.10.0",
        "v1.6.3 < 1.7",
        "1.6.9 < 1.7.0-1 < 1.7.0-alpha < 1.7.0-beta < 1.7.0-rc.1 < 1.7.0-rc.1.1 < 1.7.0-rc.2 < 1.7.0-rc.10 < 1.7.0",
    ],
)
def test_versions_are_ordered_by_number(versions: str) -> None:
    keys = [release.version_key(version) for version in versions.split(" < ")]
    assert all(older < newer for older, newer in pairwise(keys))


def test_versions_that_mean_the_same_are_equal() -> None:
    assert release.version_key("v1.7") == release.version_key("1.7.0") == release.version_key("1.7.0+build.5")


def test_a_text_that_is_not_a_version_is_refused() -> None:
    with pytest.raises(ValueError, match="'latest' is not a version"):
        release.version_key("latest")


BUNDLE = "gateway.networking.k8s.io/bundle-version"


@pytest.mark.parametrize(
    ("more", "name", "stated"),
    [
        ({}, "keda", set()),
        ({"labels": {"app.kubernetes.io/version": "2.19.0"}}, "keda", {"2.19.0"}),
        ({"labels": {"app.kubernetes.io/version": "latest"}}, "keda", set()),
        ({"annotations": {BUNDLE: "v1.6.3"}}, "gateway-api", {"v1.6.3"}),
        ({"labels": None, "annotations": None}, "keda", set()),
        # Tags of its own images
        ("ghcr.io/kedacore/keda:2.21.0", "keda", {"2.21.0"}),
        ("mirror.example.com:5000/gateway:v1.9.1@sha256:abc", "envoy-gateway", {"v1.9.1"}),
        ("envoyproxy/ratelimit:8.0.0", "envoy-gateway", set()),
        ("ghcr.io/fluxcd/source-controller:v1.9.5", "flux", set()),
        ("ghcr.io/kedacore/keda@sha256:abc", "keda", set()),
        ("mirror.example.com:5000/keda", "keda", set()),
        ("keda:main", "keda", set()),
    ],
)
def test_a_manifest_states_its_version_in_labels_annotations_and_images(
    more: release.Object | str, name: str, stated: set[str]
) -> None:
    pod = {"containers": [{"name": "app", "image": more}]}
    found = {"spec": {"template": {"spec": pod}}} if isinstance(more, str) else {"metadata": more}
    item = {"kind": "Deployment", **found, "metadata": {"name": "app", **found.get("metadata", {})}}
    assert release.stated_versions([item], name) == stated


FEW = "0 of 1 pods are up to date and ready"


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ({}, None),
        ({"observedGeneration": 1}, "its controller has not processed it yet"),
        ({"updatedReplicas": 0}, FEW),  # the old ones still serve
        ({"availableReplicas": 0}, f"{FEW} (Deployment does not have minimum availability.)"),
        ({"replicas": 2}, FEW),  # the new pod does not start, and the old one still serves
        ({"replicas": 2, "availableReplicas": 2}, None),
    ],
)
def test_a_deployment_is_ready_when_its_new_pods_are(status: release.Object, reason: str | None) -> None:
    conditions = [{"type": "Available", "status": "False", "message": "Deployment does not have minimum availability."}]
    sound = {"observedGeneration": 2, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}
    deployment = {
        "kind": "Deployment",
        "metadata": {"name": "app", "generation": 2},
        "spec": {"replicas": 1},
        "status": {**sound, "conditions": conditions, **status},
    }
    assert release.not_ready(deployment) == reason
    assert release.not_ready(None) == "it does not exist"


@pytest.mark.parametrize(
    ("live", "wanted", "held"),
    [
        ({"data": {"a": "1"}, "status": {}}, {"data": {"a": "1"}}, True),  # more fields than its manifest names
        ({"data": {"a": "2"}}, {"data": {"a": "1"}}, False),
        ({"data": {"a": 1}}, {"data": {"a": "1"}}, False),
        ({}, {"data": {"a": "1"}}, False),
        (None, {"data": {"a": "1"}}, False),
        # A list has to be the same.
        ([{"name": "a", "more": 1}, {"name": "b"}], [{"name": "a"}, {"name": "b"}], True),
        ([{"name": "b"}, {"name": "a"}], [{"name": "a"}, {"name": "b"}], False),
        ([{"name": "a"}, {"name": "b"}, {"name": "c"}], [{"name": "a"}, {"name": "b"}], False),
        ([{"name": "a"}], [{"name": "a"}, {"name": "b"}], False),
    ],
)
def test_an_object_that_has_the_fields_of_its_manifest_is_recognized(live: Any, wanted: Any, held: bool) -> None:
    assert release.holds(live, wanted) is held

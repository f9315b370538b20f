"""Our code that reads the API's schemas finds the same faults as a general validator of JSON Schema."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render
from ansible_collections.nativelink.gitops.plugins.plugin_utils.objects import object_findings
from ansible_collections.nativelink.gitops.plugins.plugin_utils.validation import schemas
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from testkit.trees import values_of

EVERYTHING = {
    "nativelink_scheduler_backend": "redis",
    "nativelink_worker_pools": [{"name": "linux", "spot": "gke"}, {"name": "arm", "scaling": "hpa"}],
    "nativelink_metrics_namespaces": ["monitoring"],
    "nativelink_prometheus": "bundled",
    "nativelink_edge": "ingress",
    "nativelink_worker_egress": [{"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": [{"port": 443}]}],
}
KEYWORDS = {"$ref", "type", "format", "oneOf", "properties", "additionalProperties", "items", "required", "enum"}
VERSION = schemas.shipped_version("1.31")


def objects() -> list[dict[str, Any]]:
    found = [yaml.load(text, yaml.CSafeLoader) for _, text in render.objects(values_of(**EVERYTHING))]
    return [item for item in found if schemas._kinds(VERSION).get((item["apiVersion"], item["kind"]))]


def definition_of(item: dict[str, Any]) -> dict[str, Any]:
    return dict(schemas.definitions(VERSION)[schemas._kinds(VERSION)[item["apiVersion"], item["kind"]]])


def changed(value: Any) -> Iterator[Any]:
    """Yield `value` with one change at a time, at every place: another type, another key, one key less."""
    if isinstance(value, dict):
        yield {**value, "unheardOf": 1}
        for key, item in value.items():
            yield {name: each for name, each in value.items() if name != key}
            yield from ({**value, key: each} for each in changed(item))
    elif isinstance(value, list):
        yield from (
            [*value[:index], each, *value[index + 1 :]] for index, item in enumerate(value) for each in changed(item)
        )
    yield from (each for each in ("text", 7, 1.5, True, [], {}) if type(each) is not type(value))


def test_a_general_validator_finds_faults_in_the_same_changed_objects() -> None:
    contents = {"$id": "urn:kubernetes", "$defs": schemas.definitions(VERSION)}
    registry = Registry().with_resource("urn:kubernetes", Resource(contents, DRAFT202012))
    seen = {True: 0, False: 0}
    for item in {item["kind"]: item for item in objects()}.values():
        name = schemas._kinds(VERSION)[item["apiVersion"], item["kind"]]
        validator = jsonschema.Draft202012Validator({"$ref": f"urn:kubernetes#/$defs/{name}"}, registry=registry)
        for each in changed(item):
            if not isinstance(each, dict) or any(each.get(key) != item[key] for key in ("apiVersion", "kind")):
                continue  # these two keys choose the definition
            found = list(schemas.shape_findings(schemas.definitions(VERSION), definition_of(item), "", each))
            assert (found == []) == validator.is_valid(each), json.dumps(each)
            seen[found == []] += 1
    assert min(seen.values()) > 100, seen


def reachable(schema: Any, seen: set[str]) -> Iterator[dict[str, Any]]:
    yield schema
    name = schema.get("$ref", "").rpartition("/")[2]
    if name and name not in seen:
        seen.add(name)
        yield from reachable(schemas.definitions(VERSION)[name], seen)
    parts = [*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")]
    for part in parts:
        if isinstance(part, dict):
            yield from reachable(part, seen)


def test_the_schemas_use_no_keyword_that_is_not_read() -> None:
    seen: set[str] = set()
    for item in objects():
        for schema in reachable(definition_of(item), seen):
            assert {key for key in schema if not key.startswith("x-")} <= {*KEYWORDS, "description"}
            assert len(schema.get("enum", ["kind"])) == 1, "this enum has more than the name of a kind or a version"
    assert len(seen) > 100


@pytest.mark.parametrize(
    ("minimum", "version"),
    [("1.31", "1.31"), ("v1.31.4", "1.31"), ("1.9", "1.25"), ("1.99", None), ("2.0", None), (None, None)],
)
def test_the_schemas_are_those_of_the_oldest_accepted_version(minimum: str | None, version: str | None) -> None:
    assert str(schemas.shipped_version(minimum)) == (version or str(schemas._shipped()[-1]))


def test_a_key_that_a_newer_version_knows_is_told_from_a_mistake() -> None:
    def said(minimum: str, **value: object) -> list[tuple[str, str, str]]:
        return list(schemas.definition_findings("io.k8s.api.autoscaling.v2.HPAScalingRules", "up", value, minimum))

    assert said("1.33", tolerance="0.1") == []
    newer = 'remove it, or write preflight_minimum_kubernetes: "1.33" if the cluster is that new'
    assert said("1.31", tolerance="0.1") == [("up.tolerance", "is unknown in Kubernetes 1.31", newer)]
    assert said("1.31", tolerances="0.1") == [
        ("up.tolerances", "unknown key", "write one of policies, selectPolicy, stabilizationWindowSeconds")
    ]


def test_a_fault_of_an_object_is_named_by_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = "{apiVersion: v1, kind: Service, spec: {ports: [{name: grpc, port: http}]}}"
    monkeypatch.setattr(render, "objects", lambda values: [("cas/service.yaml", broken)])
    assert list(map(str, object_findings({"cluster": "prod", "preflight_minimum_kubernetes": "1.31"}))) == [
        "prod: rendered/cas/service.yaml: spec.ports[grpc].port: is 'http', not a whole number; write a whole number"
    ]


def test_clusters_that_differ_in_their_names_alone_are_checked_once() -> None:
    schemas.text_findings.cache_clear()
    for name in ("first", "second"):
        assert list(object_findings(values_of(name, **EVERYTHING))) == []
    cache = schemas.text_findings.cache_info()
    assert cache.hits == cache.misses > 20

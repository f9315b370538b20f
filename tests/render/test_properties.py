"""The trees of generated inventories have the properties that the tree of every valid inventory must have."""

import json
import os
import subprocess
import sys
from functools import cache
from typing import Any

import json5
import jsonschema
import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render
from hypothesis import HealthCheck, given, settings

from testkit.inventories import LABELS, inventories
from testkit.trees import ROOT, VERSION, objects_of, values_of
from tests.render.test_clients import selected

RELAXED = settings(max_examples=30, derandomize=True, suppress_health_check=list(HealthCheck))


@RELAXED
@given(LABELS, inventories())
def test_every_object_is_unique_and_has_a_namespace(cluster: str, variables: dict[str, Any]) -> None:
    files = render.tree(values_of(cluster, **variables))
    objects = objects_of(files)
    for item in objects:
        assert item["metadata"]["namespace"] in ("nativelink", "nativelink-workers")
        assert item["metadata"]["labels"]["app.kubernetes.io/instance"] == cluster
        assert item["kind"] != "Secret"
    names = [(item["kind"], item["metadata"]["namespace"], item["metadata"]["name"]) for item in objects]
    assert len(names) == len(set(names))
    listed = yaml.safe_load(files["kustomization.yaml"])
    generated = {file for generator in listed["configMapGenerator"] for file in generator["files"]}
    for_users = {"monitoring/alert-rules.yaml", "monitoring/inhibit-rules.yaml"} & files.keys()
    for_clients = {path for path in files if path.startswith("clients/")}
    applied = {*listed["resources"], *generated, *for_users, "kustomization.yaml"}
    assert applied == files.keys() - for_clients, "an unused file, or one for clients that is applied"
    # Pools may offer the same, so a client may reach others, too.
    assert [pool for pool, pools in selected(files) if pool not in pools] == []


@cache
def schema(version: str) -> jsonschema.Draft202012Validator:
    text = (ROOT / f"schemas/nativelink-{version}.schema.json").read_text()
    return jsonschema.Draft202012Validator(yaml.load(text, yaml.CSafeLoader))


def faults(version: str, text: str) -> list[str]:
    """Return a configuration's errors by the schema of a version (schemas/README.md)."""
    return [f"{error.json_path}: {error.message[:300]}" for error in schema(version).iter_errors(json5.loads(text))]


@RELAXED
@given(inventories())
def test_every_configuration_passes_the_schema(variables: dict[str, Any]) -> None:
    files = render.tree(values_of(**variables))
    for path, text in files.items():
        if path.endswith(".json5"):
            assert faults(variables["nativelink_version"], text) == [], path


def test_a_version_with_other_names_refuses_a_configuration() -> None:
    """The counter-run of the test above."""
    for version, other in (("v1.3.2", VERSION), (VERSION, "v1.3.2")):
        text = render.tree(values_of(nativelink_version=version))["worker/default/worker.json5"]
        assert faults(version, text) == []
        assert faults(other, text) != []


RENDERING = """
import json, sys
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render
from testkit.trees import values_of
print(json.dumps(render.tree(values_of(**json.loads(sys.argv[1])))))
"""


def test_the_same_inventory_gives_the_same_tree() -> None:
    """The tree does not depend on Python's hashes, which order sets and differ between processes."""
    names = list("abcdefgh")
    mappings = ("node_selector", "platform_properties", "annotations", "env")
    pool = {"persistent_workers": True, **dict.fromkeys(mappings, dict.fromkeys(names, "x"))}
    variables = {
        "nativelink_worker_pools": [{"name": name, **pool} for name in names],
        "nativelink_scheduler_platform_properties": dict.fromkeys(names, "exact"),
        **dict.fromkeys(("nativelink_image_pull_secrets", "nativelink_metrics_namespaces"), names),
        "nativelink_prometheus": "bundled",
    }
    path = f"{ROOT}:{ROOT / '.ansible/collections'}"
    first, second = (
        subprocess.check_output(
            [sys.executable, "-c", RENDERING, json.dumps(variables)],
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": seed},
            text=True,
        )
        for seed in ("1", "2")
    )
    assert {f"worker/{name}/deployment.yaml" for name in names} < json.loads(first).keys()
    assert first == second

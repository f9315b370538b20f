"""Trees for the tests: rendered in process from variables that a test states, or the committed ones."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import json5
import jsonschema
import pytest
import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils import specs
from ansible_collections.nativelink.gitops.plugins.plugin_utils.versions import VERSIONS

from testbed import build

ROOT = Path(__file__).resolve().parents[2]
CLUSTERS = ROOT / "clusters"
VERSION = str(yaml.safe_load((ROOT / "roles/nativelink/defaults/main.yml").read_text())["nativelink_version"])
"""The default version of NativeLink, which the committed trees have."""
Values = dict[str, Any]
Object = dict[str, Any]


def values_of(cluster: str = "test", **variables: Any) -> Values:
    """Return the renderer's input for a cluster with these variables. Templates are plain texts here."""
    # The last three have a default that is a template.
    stated = {
        "storage_classes_list": [{"name": "local-path", "preset": "local-path"}],
        "ingress_class_name": "nativelink",
        "ingress_namespace": "edge",
        "gitops_namespace": "gitops",
        **variables,
    }
    return specs.effective({"inventory_hostname": cluster, **stated}, lambda text: text)


def objects_of(files: dict[str, str]) -> list[Object]:
    """Return the objects of a rendered tree, without the kustomization and the generated ConfigMaps."""
    kustomization = yaml.safe_load(files["kustomization.yaml"])
    return [yaml.safe_load(files[path]) for path in kustomization["resources"]]


def find(objects: list[Object], kind: str, name: str) -> Object:
    """Return the one object of this kind and name."""
    (found,) = [item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name]
    return found


def committed(cluster: str) -> dict[str, str]:
    """Return the files of a committed cluster's tree, by path below rendered/."""
    folder = CLUSTERS / cluster / "rendered"
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder into which a cluster named `test` is written."""
    return tmp_path / "clusters" / "test"


@pytest.fixture(scope="session")
def kustomize() -> Callable[[Path], list[Object]]:
    """Return a function that builds a cluster's folder as both engines do."""
    kubectl = build.binaries()["kubectl"]

    def objects(folder: Path) -> list[Object]:
        done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        # kustomize does not quote a "=", which is a type of its own in YAML 1.1.
        return list(yaml.load_all(re.sub(r": =$", ': "="', done.stdout, flags=re.MULTILINE), yaml.CSafeLoader))

    return objects


@pytest.fixture(scope="session")
def accepts() -> Callable[[str, str], list[str]]:
    """Return a function that lists a configuration's errors by the schema of a version (schemas/README.md)."""
    files = {version: ROOT / f"schemas/nativelink-{version}.schema.json" for version in VERSIONS}
    validators = {
        version: jsonschema.Draft202012Validator(yaml.load(file.read_text(), yaml.CSafeLoader))
        for version, file in files.items()
    }

    def faults(version: str, text: str) -> list[str]:
        return [
            f"{error.json_path}: {error.message[:300]}" for error in validators[version].iter_errors(json5.loads(text))
        ]

    return faults

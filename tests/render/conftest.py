"""What the tests of trees share: kustomize, and the schemas of NativeLink's configuration."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import json5
import jsonschema
import pytest
import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils.versions import VERSIONS

from testbed import build
from testkit.trees import ROOT, Object


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder into which a cluster named `test` is written."""
    return tmp_path / "clusters" / "test"


@pytest.fixture(scope="session")
def kustomize() -> Callable[[Path], list[Object]]:
    """Return a function that builds a cluster's folder as both engines do."""
    kubectl = build.program("kubectl")

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

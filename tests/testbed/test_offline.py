"""`make bootstrap` works offline: its release manifests are made here, and the roles' variables name them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def run(target: Path, *components: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "testbed", "manifests", "--variables", str(target), *components],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_variables_name_the_manifests(tmp_path: Path) -> None:
    target = tmp_path / "new" / "variables.yml"
    done = run(target, "keda", "gateway-api", "envoy-gateway")  # what inventories/local installs
    assert done.returncode == 0, done.stderr
    variables = yaml.safe_load(target.read_text())
    assert variables.pop("keda_wait_for_metrics_api") is False
    assert set(variables) == {"keda_manifest", "ingress_gateway_api_manifest", "ingress_envoy_gateway_manifest"}
    assert all(Path(path).is_file() for path in variables.values())


def test_a_manifest_that_cannot_be_made_is_reported_without_a_traceback(tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path), "TESTBED_BIN": str(tmp_path)}
    done = run(tmp_path / "variables.yml", "keda", **environment)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"testbed: TESTBED_BIN={tmp_path} has no executable kubectl"
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "variables.yml").exists()

"""`make bootstrap` works offline: its release manifests are made here, and the roles' variables name them."""

from pathlib import Path

import yaml

from testbed.__main__ import main


def test_the_variables_name_the_manifests(tmp_path: Path) -> None:
    target = tmp_path / "new" / "variables.yml"
    # What inventories/local installs.
    assert main(["manifests", "--variables", str(target), "keda", "gateway-api", "envoy-gateway"]) == 0
    variables = yaml.safe_load(target.read_text())
    assert variables.pop("keda_wait_for_metrics_api") is False
    assert set(variables) == {"keda_manifest", "ingress_gateway_api_manifest", "ingress_envoy_gateway_manifest"}
    assert all(Path(path).is_file() for path in variables.values())

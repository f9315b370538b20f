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
    names = ("keda_manifest", "ingress_gateway_api_manifest", "ingress_envoy_gateway_manifest")
    # They are not the releases, so their checksums are not those of the releases.
    assert [variables.pop(f"{name}_sha256") for name in names] == ["", "", ""]
    assert set(variables) == set(names)
    assert all(Path(path).is_file() for path in variables.values())

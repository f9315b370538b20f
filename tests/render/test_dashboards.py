"""The tree holds Grafana's dashboards if the inventory wants them."""

import json
from pathlib import Path

from ansible_collections.nativelink.gitops.plugins.plugin_utils import render, tree

from testkit.trees import kustomized, values_of

NAMES = ["cache", "edge", "gitops", "overview", "queue", "workers"]
MOST = 256 * 1024  # bytes: Argo CD and kubectl copy an object that they apply on the client's side into an annotation


def test_a_tree_has_no_dashboard_unless_the_inventory_wants_them() -> None:
    plain, wanted = (render.tree(values_of(nativelink_dashboards=each)) for each in (False, True))
    assert sorted(set(wanted) - set(plain)) == [f"monitoring/dashboards/{name}.json" for name in NAMES]
    assert [path for path in plain if plain[path] != wanted[path]] == ["kustomization.yaml"]


def test_the_sidecar_finds_a_config_map_for_each_dashboard(folder: Path) -> None:
    tree.write(folder, render.tree(values_of(nativelink_dashboards=True, nativelink_namespace="farm")))
    built = {item["metadata"]["name"]: item for item in kustomized(folder) if item["kind"] == "ConfigMap"}
    for name in NAMES:
        item = built[f"nativelink-dashboard-{name}"]  # without a hash, which the others have
        assert item["metadata"]["namespace"] == "farm"
        assert item["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert item["metadata"]["annotations"]["grafana_folder"] == "NativeLink"
        assert json.loads(item["data"][f"{name}.json"])["uid"] == f"nativelink-{name}"
        assert len(json.dumps(item)) < MOST
    assert "nativelink-cas-config" not in built, "the counter-run"

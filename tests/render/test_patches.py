"""A user's patch that matches no object is reported; kustomize itself does not report one."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils import patches, render, tree

from testkit.trees import Object, kustomized, values_of

FILES = render.tree(values_of())
SMP = {
    "apiVersion": "apps/v1",
    "kind": "StatefulSet",
    "metadata": {"name": "nativelink-cas", "namespace": "nativelink"},
    "spec": {"template": {"spec": {"priorityClassName": "high"}}},
}


def reported(folder: Path, **kustomization: Any) -> list[str]:
    tree.write(folder, FILES)
    (folder / "kustomization.yaml").write_text(yaml.safe_dump({"resources": ["rendered"], **kustomization}))
    return [line.removeprefix(f"{folder}/kustomization.yaml: ") for line in patches.warnings(folder, FILES)]


MATCHING: list[Object] = [
    {"kind": "StatefulSet"},
    {"kind": "StatefulSet", "name": "nativelink-.*"},
    {"group": "apps", "version": "v1", "kind": "Deployment", "name": "nativelink-scheduler", "namespace": "nativelink"},
    {"labelSelector": "app.kubernetes.io/component=worker"},
    {"labelSelector": "app.kubernetes.io/component!=worker,app.kubernetes.io/instance"},
    {"kind": "ConfigMap", "name": "nativelink-cas-config"},
]
OTHER: list[Object] = [
    {"kind": "StatefulSet", "name": "nativelink-ca"},  # whole names only
    {"kind": "Deployment", "name": "nativelink-worker-gone"},
    {"group": "batch", "kind": "StatefulSet"},
    {"kind": "StatefulSet", "namespace": "elsewhere"},
    {"labelSelector": "app.kubernetes.io/component=gone"},
    {"labelSelector": "!app.kubernetes.io/name"},
    {"annotationSelector": "mine=yes"},
]


def test_only_a_target_that_matches_nothing_is_reported(folder: Path) -> None:
    def patched(targets: list[Object]) -> list[str]:
        return reported(folder, patches=[{"patch": yaml.safe_dump(SMP), "target": target} for target in targets])

    assert patched(MATCHING) == []
    wanted = [", ".join(f"{key} {value}" for key, value in target.items()) for target in OTHER]
    fix = "correct its target or remove it"
    assert patched(OTHER) == [f"an inline patch matches nothing in rendered/ ({each}); {fix}" for each in wanted]
    kustomized(folder)  # succeeds, which is why rendering reports them


def test_a_file_that_merges_and_files_that_do_not(folder: Path) -> None:
    (folder / "patches").mkdir(parents=True)
    (folder / "patches/good.yaml").write_text(yaml.safe_dump(SMP))
    (folder / "patches/no-namespace.yaml").write_text(yaml.safe_dump({**SMP, "metadata": {"name": "nativelink-cas"}}))
    (folder / "patches/name.yaml").write_text(yaml.safe_dump({**SMP, "metadata": {"name": "nativelink-case"}}))
    (folder / "patches/kind.yaml").write_text(yaml.safe_dump({**SMP, "kind": "Deployment"}))
    names = ["good", "no-namespace", "name", "kind", "missing"]
    lines = reported(folder, patches=[{"path": f"patches/{name}.yaml"} for name in names])
    fix = "correct its kind, name or namespace, or remove it"
    assert lines == [
        f"patches/name.yaml matches nothing in rendered/ (StatefulSet nativelink-case); {fix}",
        f"patches/kind.yaml matches nothing in rendered/ (Deployment nativelink-cas); {fix}",
        "patches/missing.yaml does not exist; remove it from the patches",
    ]


ELSEWHERE = {"patch": "[]", "target": {"kind": "Elsewhere"}}
QUOTA = {"patch": "[]", "target": {"kind": "ResourceQuota"}}


@pytest.mark.parametrize(
    ("kustomization", "count"),
    [
        ({"patches": [ELSEWHERE, QUOTA]}, 2),
        # Older spellings
        ({"patchesStrategicMerge": ["patches/a.yaml"], "patchesJson6902": [ELSEWHERE]}, 2),
        # Objects of the user's own, and objects that come from elsewhere
        ({"patches": [ELSEWHERE, QUOTA], "resources": ["rendered", "quota.yaml"]}, 1),
        ({"patches": [ELSEWHERE], "resources": ["rendered", "https://example.com/x"]}, 0),
        ({"patches": [ELSEWHERE], "components": ["../component"]}, 0),
    ],
)
def test_a_patch_may_match_what_is_not_rendered(folder: Path, kustomization: dict[str, Any], count: int) -> None:
    folder.mkdir(parents=True)
    (folder / "quota.yaml").write_text("{apiVersion: v1, kind: ResourceQuota, metadata: {name: mine}}")
    assert len(reported(folder, **kustomization)) == count


def test_a_kustomization_that_lost_the_tree_or_does_not_parse(folder: Path) -> None:
    (line,) = reported(folder, resources=[])
    assert line == f"{folder}/kustomization.yaml does not list rendered among its resources"
    (folder / "kustomization.yaml").write_text("resources: [")
    (line,) = patches.warnings(folder, FILES)
    assert "cannot be checked" in line
    (folder / "kustomization.yaml").unlink()
    (folder / "kustomization.yaml").symlink_to("missing.yaml")
    (line,) = patches.warnings(folder, FILES)
    assert line.startswith(f"{folder}/kustomization.yaml cannot be checked: [Errno 2] No such file or directory")

"""The tree that the role nativelink renders, and the user's files beside it, which it keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from testinfra.host import Host

Kubectl = Callable[..., Any]
TREE = Path(__file__).resolve().parents[3] / ".testbed/molecule/clusters/molecule"


def test_the_tree_exists(host: Host) -> None:
    for name in ("kustomization.yaml", "patches/README.md", "rendered/kustomization.yaml", "rendered/cas/cas.json5"):
        assert host.file(str(TREE / name)).is_file
    assert not host.file(str(TREE / "rendered/worker/default/scaledobject.yaml")).exists
    assert host.file(str(TREE / "rendered/worker/default/horizontalpodautoscaler.yaml")).is_file


def test_the_manual_edit_is_overwritten(host: Host) -> None:
    assert "name: nativelink-cas" in host.file(str(TREE / "rendered/cas/service.yaml")).content_string


def test_the_users_patch_is_kept_and_takes_effect(kubectl: Kubectl) -> None:
    built = list(yaml.safe_load_all(kubectl("kustomize", str(TREE))))
    (cas,) = [item for item in built if item["kind"] == "StatefulSet"]
    assert cas["spec"]["template"]["spec"]["priorityClassName"] == "system-cluster-critical"


def test_the_api_server_accepts_the_tree(kubectl: Kubectl) -> None:
    answer = kubectl("apply", "--server-side", "--field-manager=nativelink-gitops", "--dry-run=server", "-k", str(TREE))
    assert "statefulset.apps/nativelink-cas serverside-applied (server dry run)" in answer
    assert "horizontalpodautoscaler.autoscaling/nativelink-worker-default serverside-applied (server dry run)" in answer

"""`ansible-doc` shows the roles and the modules of the installed collection."""

import json
from pathlib import Path
from typing import Any

import yaml

from .conftest import ROOT, Collection, run

ROLES = sorted(path.name for path in (ROOT / "roles").iterdir())


def documentation(kind: str, collection: Collection, *names: str) -> dict[str, Any]:
    """Return what `ansible-doc --json` prints about the collection's plugins, by short name."""
    wanted = [f"nativelink.gitops.{name}" for name in names]
    path = {"ANSIBLE_COLLECTIONS_PATH": str(collection.path)}
    # Warnings go to the same output, before the first brace of the JSON.
    text = run("ansible-doc", "-t", kind, "--json", *wanted, cwd=collection.path, **path).stdout
    return {name.rpartition(".")[2]: found for name, found in json.loads(text[text.index("{") :]).items()}


def test_the_action_group_has_all_that_take_the_cluster(collection: Collection, tmp_path: Path) -> None:
    group = yaml.safe_load((ROOT / "meta/runtime.yml").read_text())["action_groups"]["cluster"]
    names = sorted(path.stem for path in (ROOT / "plugins/action").glob("*.py"))
    modules = documentation("module", collection, *names)
    assert group == [name for name, each in modules.items() if {"kubeconfig", "context"} <= {*each["doc"]["options"]}]
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "module_defaults": {"group/nativelink.gitops.cluster": {"nonsense": 1}},
        "tasks": [{"nativelink.gitops.check_secrets": None}],
    }
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    path = {"ANSIBLE_COLLECTIONS_PATH": str(collection.path)}
    output = run("ansible-playbook", "play.yml", cwd=tmp_path, check=False, **path).stdout
    assert "check_secrets) module: nonsense." in output


def test_every_entry_point_of_a_role_is_documented(collection: Collection) -> None:
    roles = documentation("role", collection, *ROLES)
    assert sorted(roles) == ROLES
    for name, role in roles.items():
        points = {point for point, each in role["entry_points"].items() if each["short_description"]}
        assert points == role["entry_points"].keys()
        files = {path.stem for path in (ROOT / "roles" / name / "tasks").iterdir()}
        assert points == (files if name in ("nativelink", "preflight") else {"main"})

"""`ansible-doc` shows every module, role and callback, and what it shows is what Ansible accepts."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import ROOT, Collection, run

ACTIONS = sorted(path.stem for path in (ROOT / "plugins/action").glob("*.py"))
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir())


@cache
def documentation(kind: str, collection: Collection, *names: str) -> dict[str, Any]:
    """Return what `ansible-doc --json` prints about the collection's plugins, by short name."""
    wanted = [f"nativelink.gitops.{name}" for name in names]
    path = {"ANSIBLE_COLLECTIONS_PATH": str(collection.path)}
    # Warnings go to the same output, before the first brace of the JSON.
    text = run("ansible-doc", "-t", kind, "--json", *wanted, cwd=collection.path, **path).stdout
    return {name.rpartition(".")[2]: found for name, found in json.loads(text[text.index("{") :]).items()}


def parts(documented: dict[str, Any]) -> dict[str, Any]:
    """Return each option and return value of a module, by its place."""
    return {
        **{f"options.{name}": each for name, each in documented["doc"].get("options", {}).items()},
        **{f"return.{name}": each for name, each in documented["return"].items()},
    }


def test_the_action_group_has_all_that_take_the_cluster(collection: Collection, tmp_path: Path) -> None:
    group = yaml.safe_load((ROOT / "meta/runtime.yml").read_text())["action_groups"]["cluster"]
    modules = documentation("module", collection, *ACTIONS)
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
    assert "Unsupported parameters for (nativelink.gitops.check_secrets) module: nonsense." in output


def test_every_action_is_documented_as_a_module(collection: Collection) -> None:
    modules = documentation("module", collection, *ACTIONS)
    assert len(ACTIONS) == 12
    assert sorted(modules) == ACTIONS == sorted(path.stem for path in (ROOT / "plugins/modules").glob("*.py"))
    for name, module in modules.items():
        assert module["doc"]["short_description"], name
        assert [where for where, part in parts(module).items() if not part.get("description")] == [], name
        (task,) = yaml.safe_load(module["examples"])
        assert f"nativelink.gitops.{name}" in task
        arguments = set(task[f"nativelink.gitops.{name}"] or ())
        options = module["doc"].get("options", {})
        assert arguments <= set(options), name
        assert {key for key, option in options.items() if option.get("required")} <= arguments, name


def test_a_module_accepts_the_arguments_that_are_documented(collection: Collection, tmp_path: Path) -> None:
    """Each action also gets an argument that does not exist, and names the arguments that it accepts."""
    modules = {
        name: each["doc"].get("options", {}) for name, each in documentation("module", collection, *ACTIONS).items()
    }
    some = {"str": "x", "path": "x", "int": 1, "list": [], "dict": {}}
    tasks = [
        {
            f"nativelink.gitops.{name}": {
                "nonsense": 1,
                **{key: some[option["type"]] for key, option in options.items() if option.get("required")},
            },
            "ignore_errors": True,
        }
        for name, options in modules.items()
    ]
    play = {"hosts": "localhost", "gather_facts": False, "tasks": tasks}
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    output = run("ansible-playbook", "play.yml", cwd=tmp_path, ANSIBLE_COLLECTIONS_PATH=str(collection.path)).stdout
    answer = (
        r'"msg": "Unsupported parameters for \(\S+\.(\w+)\) module: nonsense\. Supported parameters include: ([^"]*)\."'
    )
    accepted = {name: re.findall(r"\w+", text) for name, text in re.findall(answer, output)}
    assert accepted == {name: sorted(options) for name, options in modules.items()}
    assert accepted["await_nodes"] == ["context", "kubeconfig", "name", "namespace", "timeout", "what"]


@pytest.mark.parametrize("name", ROLES)
def test_every_role_is_documented(collection: Collection, name: str) -> None:
    main = documentation("role", collection, *ROLES)[name]["entry_points"]["main"]
    files = (yaml.safe_load(path.read_text()) for path in (ROOT / "roles" / name / "defaults").rglob("*.yml"))
    assert main["short_description"]
    assert {key for file in files for key in file if not key.startswith("__")} <= set(main["options"])
    assert [key for key, option in main["options"].items() if not option.get("description")] == []


def test_every_entry_point_is_documented(collection: Collection) -> None:
    roles = documentation("role", collection, "nativelink", "preflight")
    for name, role in roles.items():
        files = {path.stem for path in (ROOT / "roles" / name / "tasks").iterdir()}
        assert {point for point, each in role["entry_points"].items() if each["short_description"]} == files
    assert set(roles["preflight"]["entry_points"]) == {"main", "static", "live"}


def test_the_callback_is_documented(collection: Collection) -> None:
    callback = documentation("callback", collection, "cluster_summary")["cluster_summary"]
    assert callback["doc"]["short_description"]

"""Fixtures that run roles and actions with ansible-playbook. Each file has its own embedded cluster."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from testbed import cluster
from testbed.cluster import Cluster
from testkit.inventories import offline, write_inventory
from testkit.playbooks import run_playbook

CLUSTER = "dev"

Object = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A run's exit status, its tasks' names and results in their order, and all that it printed."""

    status: int
    tasks: list[tuple[str, Object]]
    output: str

    @property
    def changed(self) -> list[str]:
        return [name for name, result in self.tasks if result.get("changed")]

    @property
    def message(self) -> str:
        """Return the message of the failed task that shows one."""
        return next((str(result["msg"]) for _, result in self.tasks if result.get("failed") and "msg" in result), "")

    @property
    def summary(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for _, result in self.tasks:
            for part in (result, *result.get("results", ())):  # a loop has a result for each item
                for section, lines in part.get("cluster_summary", {}).items():
                    found.setdefault(section, []).extend(lines)
        return found


Play = Callable[..., Run]
Live = Callable[..., Object]


@pytest.fixture(scope="module")
def dev(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with cluster.fresh(request.path.stem.replace("_", "-")) as running:
        yield running


@pytest.fixture(scope="module")
def variables(dev: Cluster) -> Object:
    # The plays of the playbooks have the role preflight, which sets the version.
    return offline() | {
        "cluster_kubeconfig": str(dev.kubeconfig),
        "cluster_context": dev.context,
        "preflight_minimum_kubernetes": "1.31",
    }


@pytest.fixture(scope="module")
def play(variables: Object, tmp_path_factory: pytest.TempPathFactory) -> Play:
    """Return a function: ``play(tasks, "--check", name=value)`` runs one play.

    A task that is a string is a role, or a part of one: ``role/part``.
    """
    folder = tmp_path_factory.mktemp("play")

    def run(tasks: list[str | Object], *arguments: str, **more: object) -> Run:
        def task(each: str | Object) -> Object:
            if not isinstance(each, str):
                return {"name": "Task", **each}
            role, _, part = each.partition("/")
            checked = {"rolespec_validate": False} if part else {}
            return {
                "name": each,
                "ansible.builtin.import_role": {"name": role, "tasks_from": part or "main", **checked},
            }

        book = {
            "name": "Test",
            "hosts": CLUSTER,
            "connection": "local",
            "gather_facts": False,
            "collections": ["nativelink.gitops"],
            "vars": {"ansible_python_interpreter": "{{ ansible_playbook_python }}"},
            "tasks": [task(each) for each in tasks],
        }
        path = folder / "play.yml"
        path.write_text(yaml.safe_dump([book], sort_keys=False))
        done = run_playbook(
            path,
            write_inventory(folder, {CLUSTER: variables | more}),
            *arguments,
            ANSIBLE_STDOUT_CALLBACK="ansible.posix.json",
        )
        begin = re.search(r"^\{$", done.output, re.MULTILINE)
        assert begin, done.output
        # The closing summary comes after the JSON.
        answer, _ = json.JSONDecoder().raw_decode(done.output, begin.start())
        results = [
            (each["task"]["name"].removeprefix("nativelink.gitops."), each["hosts"][CLUSTER])
            for each in answer["plays"][0]["tasks"]
            if CLUSTER in each["hosts"]
        ]
        return Run(done.status, results, done.output)

    return run


@pytest.fixture(scope="module")
def live(dev: Cluster) -> Live:
    """Return a function: ``live("secret", "name", "namespace")`` returns an object, or ``{}`` if there is none.

    Without a name it returns the list of objects.
    """

    def get(kind: str, name: str = "", namespace: str = "") -> Object:
        where = ["-n", namespace] if namespace else []
        text = dev.run("get", kind, *([name] if name else []), *where, "-o", "json", "--ignore-not-found")
        return json.loads(text) if text else {}

    return get

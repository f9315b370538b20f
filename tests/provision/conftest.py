"""Fixtures that run roles and actions with ansible-playbook."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed.cluster import Cluster
from testkit.inventories import offline, write_inventory
from testkit.playbooks import run_playbook
from testkit.trees import resource

CLUSTER = "dev"
RESCUED = "The step failed"

Object = dict[str, Any]
Task = str | Object
Live = Callable[..., Object]


@dataclass(frozen=True)
class Run:
    """A play on a host: whether it failed, its tasks' names and results in their order, and all of the run's output."""

    failed: bool
    tasks: list[tuple[str, Object]]
    output: str

    @property
    def changed(self) -> list[str]:
        return [name for name, result in self.tasks if result.get("changed")]

    @property
    def message(self) -> str:
        """Return the message of the failed task that shows one, or nothing if the play did not fail."""
        found = (str(result["msg"]) for _, result in self.tasks if result.get("failed") and "msg" in result)
        return next(found, "") if self.failed else ""

    @property
    def summary(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for _, result in self.tasks:
            for part in (result, *result.get("results", ())):  # a loop has a result for each item
                for section, lines in part.get("cluster_summary", {}).items():
                    found.setdefault(section, []).extend(lines)
        return found


ENGINES = {
    "flux": ("kustomize.toolkit.fluxcd.io", "v1", "Kustomization"),
    "argocd": ("argoproj.io", "v1alpha1", "Application"),
}
"""Group, version and kind of the object with which an engine follows a tree."""


@contextmanager
def engines(dev: Cluster, *names: str) -> Iterator[None]:
    """Define the kinds of engines, without their controllers, and remove them afterwards."""
    definitions = []
    for group, version, kind in map(ENGINES.__getitem__, names):
        schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
        versions = [{"name": version, "served": True, "storage": True, "schema": schema}]
        plural = f"{kind.lower()}s"
        spec = {"group": group, "names": {"plural": plural, "kind": kind}, "scope": "Namespaced", "versions": versions}
        definitions.append(f"crd/{plural}.{group}")
        dev.apply(resource("apiextensions.k8s.io/v1/CustomResourceDefinition", f"{plural}.{group}", spec=spec))
    try:
        dev.run("wait", "--for=condition=Established", *definitions, "--timeout=60s")
        yield
    finally:
        dev.run("delete", *definitions)


def step(*tasks: Task, check_mode: bool = False, **variables: object) -> Object:
    """Return a play for `Play.steps`. A task that is a string is a role, or a part of one: ``role/part``."""

    def task(each: Task) -> Object:
        if not isinstance(each, str):
            return {"name": "Task", **each}
        role, _, part = each.partition("/")
        unchecked = {"rolespec_validate": False} if part else {}
        return {"name": each, "ansible.builtin.import_role": {"name": role, "tasks_from": part or "main", **unchecked}}

    checked = {"check_mode": True} if check_mode else {}  # false would override --check
    return {"tasks": [task(each) for each in tasks], "vars": variables, **checked}


@dataclass(frozen=True)
class Play:
    """Runs ansible-playbook, whose start costs more than most roles: what can share a run does.

    Each call runs it once. Arguments are options such as ``--diff``, and variables are added to those of the cluster.
    """

    folder: Path
    variables: Object

    def __call__(self, tasks: list[Task], *arguments: str, **variables: object) -> Run:
        """Run tasks, which must not fail."""
        run = self.cases(tasks, *arguments, **{CLUSTER: variables})[CLUSTER]
        assert not run.failed, run.message
        return run

    def cases(self, tasks: list[Task], *arguments: str, **hosts: Object) -> dict[str, Run]:
        """Run tasks for several hosts with variables of their own, side by side."""
        return {host: run for host, (run,) in self.plays([step(*tasks)], hosts, *arguments).items()}

    def steps(self, *steps: Object, arguments: tuple[str, ...] = (), **variables: object) -> list[Run]:
        """Run one play after the other, also after one that fails."""
        return self.plays([*steps], {CLUSTER: variables}, *arguments)[CLUSTER]

    def plays(self, steps: list[Object], hosts: dict[str, Object], *arguments: str) -> dict[str, list[Run]]:
        """Run steps for several hosts, and return a run for each step of each host."""
        steps = [
            {
                "name": f"Step {number}",
                "hosts": "all",
                "connection": "local",
                "gather_facts": False,
                "collections": ["nativelink.gitops"],
                **each,
                "vars": {"ansible_python_interpreter": "{{ ansible_playbook_python }}", **each["vars"]},
            }
            for number, each in enumerate(steps, 1)
        ]
        if len(steps) > 1:
            for each in steps:
                rescue = [{"name": RESCUED, "ansible.builtin.debug": {}}]
                each["tasks"] = [{"name": "Step", "block": each["tasks"], "rescue": rescue}]
        path = self.folder / "play.yml"
        path.write_text(yaml.safe_dump(steps, sort_keys=False))
        inventory = write_inventory(self.folder, {name: self.variables | more for name, more in hosts.items()})
        done = run_playbook(path, inventory, *arguments, ANSIBLE_STDOUT_CALLBACK="ansible.posix.json")
        begin = re.search(r"^\{$", done.output, re.MULTILINE)
        assert begin, done.output
        # The closing summary comes after the JSON.
        answer, _ = json.JSONDecoder().raw_decode(done.output, begin.start())

        def run(host: str, play: Object) -> Run:
            tasks = [
                (each["task"]["name"].removeprefix("nativelink.gitops."), each["hosts"][host])
                for each in play["tasks"]
                if host in each["hosts"]
            ]
            failed = bool(answer["stats"][host]["failures"]) or RESCUED in dict(tasks)
            return Run(failed, [each for each in tasks if each[0] != RESCUED], done.output)

        return {host: [run(host, play) for play in answer["plays"]] for host in hosts}


@pytest.fixture(scope="module")
def dev(request: pytest.FixtureRequest, clusters: Callable[[str], Cluster]) -> Cluster:
    """Return a cluster. Two files have one of their own, which is fresh."""
    own = {"test_provision": "provision", "test_worker_certificates": "certificates"}
    return clusters(own.get(request.path.stem, "roles"))


@pytest.fixture(scope="module")
def play(dev: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Play:
    # The plays of the playbooks have the role preflight, which sets the version.
    variables = {"cluster_kubeconfig": str(dev.kubeconfig), "cluster_context": dev.context}
    return Play(tmp_path_factory.mktemp("play"), offline() | variables | {"preflight_minimum_kubernetes": "1.31"})


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

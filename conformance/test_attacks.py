"""What actions may do and may not: ``attacks.yml``, on a farm whose actions have users of their own, and without them.

Each entry is a real action. Those of a crafted request come from a client that leaves out Bazel's checks.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from conformance.farm import CPUS, KINDS, Farm, Tell, on, running, succeeded
from testbed.waiting import patient, until
from testkit.bazel import Bazel

_PATIENCE = patient(30)  # seconds, for actions that take a few
_BUILD = """
load("tree.bzl", "tree")
genrule(name = "program", outs = ["program.sh"], executable = True,
    cmd = "printf '#!/bin/sh\\\\necho it runs\\\\n' > $@; chmod +x $@")
genrule(name = "runs", outs = ["runs.txt"], tools = [":program"], cmd = "$(location :program) > $@")
tree(name = "folder")
genrule(name = "reads", srcs = [":folder"], outs = ["reads.txt"], cmd = "cat $(location :folder)/below/file > $@")
"""
_TREE = """
def _tree(ctx):
    folder = ctx.actions.declare_directory(ctx.label.name)
    ctx.actions.run_shell(
        outputs = [folder],
        command = "mkdir -p $1/below; echo in a tree > $1/below/file; ln -s file $1/below/link; chmod -R a-w $1",
        arguments = [folder.path],
    )
    return DefaultInfo(files = depset([folder]))
tree = rule(implementation = _tree)
"""


@dataclass(frozen=True)
class Request:
    """An action, with the keys of ``attacks.yml``."""

    run: str
    inputs: Mapping[str, str] | int = field(default_factory=dict)
    outputs: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    more: Sequence[str] = ()

    def command(self, farm: Farm, salt: str) -> list[str]:
        """Return the client that runs it."""
        inputs = {f"input-{each}": each for each in range(self.inputs)} if isinstance(self.inputs, int) else self.inputs
        return farm.client(
            f"--command={json.dumps(['/bin/sh', '-c', self.run, 'sh', salt])}",
            *(f"--input={name}={text}" for name, text in inputs.items()),
            *(f"--output={path}" for path in self.outputs),
            *(f"--environment={name}={value}" for name, value in self.environment.items()),
            *(f"--timeout={_PATIENCE}", "--retries=0", *self.more),
        )

    def told(self, farm: Farm, salt: str) -> str:
        """Run it. Return what is seen."""
        with running(self.command(farm, salt)) as client:
            said, errors = client.communicate(timeout=2 * _PATIENCE)
        return _told(said) if said else f"the client failed: {errors}"


@dataclass(frozen=True)
class Attack:
    """An entry of ``attacks.yml``."""

    title: str
    request: Request
    users: str
    none: str = ""
    farms: Sequence[str] = ("attacks",)
    beside: Request | None = None
    then: Sequence[Request] = ()
    before: str = ""
    look: str = ""
    crafted: bool = False

    def __str__(self) -> str:
        """Return the name in the table."""
        return f"crafted: {self.title}" if self.crafted else self.title

    @classmethod
    def of(cls, title: str, entry: dict[str, Any]) -> Attack:
        """Return the attack of an entry."""
        parts = {name: entry.pop(name) for name in Request.__dataclass_fields__ if name in entry}
        others = {"beside": Request(**entry.pop("beside"))} if "beside" in entry else {}
        return cls(title, Request(**parts), then=[Request(**each) for each in entry.pop("then", ())], **others, **entry)

    def check(self, farm: Farm, pattern: str, tell: Tell) -> None:
        """Run the attack, and compare what is seen."""
        salt = f"attack-{time.monotonic_ns()}"
        seen: list[str] = []
        if self.before:
            _inside(farm, self.before)
        with _beside(self.beside, farm, salt) as (folder, end):
            more = [each.replace("{folder}", folder) for each in self.request.more]
            seen.append(replace(self.request, more=more).told(farm, salt))
            seen += [f"beside: {each}" for each in end()]
        seen += [f"then: {each.told(farm, salt)}" for each in self.then]
        if self.look:
            seen.append(f"look: {_inside(farm, f'{self.look} 2>&1 || true')}")
        line = " ".join(" | ".join(seen).split())
        tell(line)
        advice = " If NativeLink refuses it by now, say so in docs/security.md." if self.crafted else ""
        assert re.search(pattern, line), f"expected {pattern!r}, but seen: {line}.{advice}"


def _inside(farm: Farm, script: str) -> str:
    return farm.workers["default"][0].run("sh", "-c", script)


@contextmanager
def _beside(request: Request | None, farm: Farm, salt: str) -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """Run an action meanwhile. Yield its folder as others name it, and what ends it and returns what is seen."""
    if request is None:
        yield "", list
        return
    begun, done = (farm.ledger / f"{salt}-{name}" for name in ("victim", "done"))
    with running(request.command(farm, salt)) as client:

        def end() -> list[str]:
            done.touch()
            done.chmod(0o666)
            return [_told(client.communicate(timeout=2 * _PATIENCE)[0])]

        until("the other action to begin", begun.exists, 30)
        yield "../../" + "/".join(begun.read_text().strip().split("/")[-2:]), end


def _told(report: str) -> str:
    (action,) = json.loads(report)["actions"]
    outputs = (f"{path}: {text!r}" for path, text in sorted(action.get("outputs", {}).items()))
    return " ".join([action["outcome"], action["line"], action["errors"], *outputs])


_ENTRIES = yaml.safe_load(Path(__file__).with_name("attacks.yml").read_text()).items()
_ATTACKS = [Attack.of(title, dict(entry)) for title, entry in _ENTRIES]
_FARMS = [(KINDS[kind], attack) for attack in _ATTACKS for kind in attack.farms]


@on("attacks")
def test_trees(farm: Farm, bazel: Bazel) -> None:
    """Bazel builds programs, folders and links"""
    (bazel.workspace / "tree.bzl").write_text(_TREE)
    bazel.timed(_BUILD, 4)
    names = ("runs.txt", "reads.txt", "folder/below/link")
    read = [(bazel.workspace / "bazel-bin" / name).read_text() for name in names]
    assert read == ["it runs\n", "in a tree\n", "in a tree\n"]


@on("attacks")
def test_queue(farm: Farm) -> None:
    """actions wait for a slot"""
    succeeded(farm.load(f"--actions={3 * CPUS}", "--seconds=0.2-0.5", f"--timeout={_PATIENCE}"))


@pytest.mark.parametrize(("farm", "attack"), _FARMS, indirect=["farm"], scope="session")
def test_attack(farm: Farm, attack: Attack, tell: Tell) -> None:
    """{attack}"""
    attack.check(farm, attack.users, tell)


@on("none")
@pytest.mark.parametrize("attack", [attack for attack in _ATTACKS if attack.none])
def test_counter_run(farm: Farm, attack: Attack, tell: Tell) -> None:
    """counter-run: isolation none: {attack}"""
    attack.check(farm, attack.none, tell)

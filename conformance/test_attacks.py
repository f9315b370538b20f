"""What actions may do and may not: ``attacks.yml``, on a farm whose actions have users of their own, and without them.

Each entry is a real action. Those of a crafted request come from a client that leaves out Bazel's checks.
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from conformance.farm import CPUS, KINDS, Farm, Tell, on, succeeded
from testbed.waiting import patient, until
from testkit.bazel import Bazel
from testkit.client import Process

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


Keys = Mapping[str, Any]
"""Keys of ``attacks.yml``."""


def _client(farm: Farm, salt: str, keys: Keys) -> AbstractContextManager[Process]:
    """Return the client that runs an action."""
    inputs = keys.get("inputs", {})
    if isinstance(inputs, int):
        inputs = {f"input-{each}": each for each in range(inputs)}
    return farm.loaded(
        f"--command={json.dumps(['/bin/sh', '-c', keys.get('run', 'true'), 'sh', salt])}",
        *(f"--input={name}={text}" for name, text in inputs.items()),
        *(f"--output={path}" for path in keys.get("outputs", ())),
        *(f"--environment={name}={value}" for name, value in keys.get("environment", {}).items()),
        *(f"--timeout={_PATIENCE}", "--retries=0", *keys.get("more", ())),
    )


def _seen(farm: Farm, salt: str, keys: Keys) -> str:
    """Run an action. Return what is seen."""
    with _client(farm, salt, keys) as client:
        said, errors = client.communicate(timeout=2 * _PATIENCE)
    return _told(said) if said else f"the client failed: {errors}"


def _check(farm: Farm, attack: str, outcome: str, tell: Tell) -> None:
    """Run an attack, and compare what is seen with the pattern of an outcome, ``users`` or ``none``."""
    entry, salt = _ATTACKS[attack], f"attack-{time.monotonic_ns()}"
    if "before" in entry:
        _inside(farm, entry["before"])
    with _beside(entry.get("beside"), farm, salt) as (folder, end):
        more = [each.replace("{folder}", folder) for each in entry.get("more", ())]
        seen = [_seen(farm, salt, {**entry, "more": more})]
        seen += [f"beside: {each}" for each in end()]
    seen += [f"then: {_seen(farm, salt, each)}" for each in entry.get("then", ())]
    if "look" in entry:
        seen.append(f"look: {_inside(farm, entry['look'] + ' 2>&1 || true')}")
    line = " ".join(" | ".join(seen).split())
    tell(line)
    advice = " If NativeLink refuses it by now, say so in docs/security.md." if attack in _CRAFTED else ""
    assert re.search(entry[outcome], line), f"expected {entry[outcome]!r}, but seen: {line}.{advice}"


def _inside(farm: Farm, script: str) -> str:
    return farm.workers["default"][0].run("sh", "-c", script)


@contextmanager
def _beside(keys: Keys | None, farm: Farm, salt: str) -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """Run an action meanwhile. Yield its folder as others name it, and what ends it and returns what is seen."""
    if keys is None:
        yield "", list
        return
    begun, done = (farm.ledger / f"{salt}-{name}" for name in ("victim", "done"))
    with _client(farm, salt, keys) as client:

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


_ACTIONS, _REQUESTS, _LAST = yaml.safe_load_all(Path(__file__).with_name("attacks.yml").read_text())
_CRAFTED: dict[str, Keys] = {f"crafted: {title}": entry for title, entry in _REQUESTS.items()}
_ATTACKS: dict[str, Keys] = {**_ACTIONS, **_CRAFTED, **_LAST}
_FARMS = [(KINDS[kind], attack) for attack, entry in _ATTACKS.items() for kind in entry.get("farms", ["attacks"])]


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
def test_attack(farm: Farm, attack: str, tell: Tell) -> None:
    """{attack}"""
    _check(farm, attack, "users", tell)


@on("none")
@pytest.mark.parametrize("attack", [attack for attack, entry in _ATTACKS.items() if "none" in entry])
def test_counter_run(farm: Farm, attack: str, tell: Tell) -> None:
    """counter-run: isolation none: {attack}"""
    _check(farm, attack, "none", tell)

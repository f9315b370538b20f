"""The trees have what facts.yml says. Its values are written by hand, from references, sources and runs."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import json5
import pytest
import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render
from ansible_collections.nativelink.gitops.plugins.plugin_utils.versions import VERSIONS

from testkit.facts import at, wrong
from testkit.trees import ROOT, VERSION, Object, committed, objects_of, values_of

TEXT = (ROOT / "tests/render/facts.yml").read_text()
FACTS: dict[str, Object] = {
    fact["why"] + (f" ({version})" if "versions" in fact else ""): {"set": {}, "version": version} | fact
    for version in VERSIONS
    for fact in yaml.load(TEXT.replace("$VERSION", version), yaml.CSafeLoader)
    if version == VERSION or "versions" in fact
}
NOT_WANTED = ("why", "set", "cluster", "version", "versions")
PARSERS = {"json5": json5.loads, **dict.fromkeys(("yaml", "yml"), lambda text: yaml.load(text, yaml.CSafeLoader))}


@cache
def finder(why: str) -> Callable[[str], Any]:
    """Return a function that finds objects and files by name in the tree of a fact."""
    fact = FACTS[why]
    variables = {"nativelink_version": fact["version"]} | fact["set"]
    if "pool" in variables:
        variables["nativelink_worker_pools"] = [{"name": "linux", **variables.pop("pool")}]
    files = committed(fact["cluster"]) if "cluster" in fact else render.tree(values_of(**variables))
    objects = objects_of(files)

    @cache
    def find(name: str) -> Any:
        if name in files:
            return PARSERS.get(name.rpartition(".")[2], str)(files[name])
        kind, _, own = name.partition("/")
        found = [item for item in objects if kind in ("", item["kind"]) and own in ("", item["metadata"]["name"])]
        return next(iter(found), None) if own else found

    return find


def wanted(why: str) -> Object:
    return {name: value for name, value in FACTS[why].items() if name not in NOT_WANTED}


@pytest.mark.parametrize("why", FACTS, ids=str)
def test_fact(why: str) -> None:
    assert wanted(why)
    assert wrong(finder(why), wanted(why)) == []


def places(why: str) -> Iterator[tuple[str, str, Any]]:
    """Yield the name, the path and the value of each thing that a fact states."""
    for name, value in wanted(why).items():
        yield from ((name, *each) for each in value.items()) if isinstance(value, dict) else [(name, "", value)]


def test_each_fact_can_fail() -> None:
    for why in FACTS:
        for name, path, _ in places(why):
            other = {path: "something else"} if path else "something else"
            assert len(wrong(finder(why), {**wanted(why), name: other})) == 1, (why, name, path)


def test_each_thing_that_is_absent_is_in_another_tree() -> None:
    """Otherwise a name that is misspelled, or that nothing has any more, would be absent everywhere."""
    things = [thing for why in FACTS for name in wanted(why) if isinstance(thing := finder(why)(name), dict)]
    for why in FACTS:
        for name, path, value in places(why):
            if value is None and path:
                assert any(at(thing, path) is not None for thing in things), (name, path)
            elif value is None:
                assert any(finder(each)(name) for each in FACTS), name

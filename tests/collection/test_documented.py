"""`ansible-doc` shows every module, role and callback. Actions read their arguments from what it shows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .conftest import ROOT, Collection, run

NAMES = {
    "module": sorted(path.stem for path in (ROOT / "plugins/action").glob("*.py")),
    "role": sorted(path.name for path in (ROOT / "roles").iterdir()),
    "callback": ["cluster_summary"],
}


def documentation(kind: str, collection: Collection, *names: str) -> dict[str, Any]:
    """Return what `ansible-doc --json` prints about the collection's plugins, by short name."""
    wanted = [f"nativelink.gitops.{name}" for name in names]
    path = {"ANSIBLE_COLLECTIONS_PATH": str(collection.path)}
    # Warnings go to the same output, before the first brace of the JSON.
    text = run("ansible-doc", "-t", kind, "--json", *wanted, cwd=collection.path, **path).stdout
    return {name.rpartition(".")[2]: found for name, found in json.loads(text[text.index("{") :]).items()}


@pytest.mark.parametrize("kind", NAMES)
def test_everything_is_documented(collection: Collection, kind: str) -> None:
    found = documentation(kind, collection, *NAMES[kind])
    assert sorted(found) == NAMES[kind]
    for name, each in found.items():
        documented = each["entry_points"]["main"] if kind == "role" else each["doc"]
        assert documented["short_description"], name
        assert [key for key, part in documented.get("options", {}).items() if not part.get("description")] == [], name

"""NativeLink's versions: the table of what depends on them, and the schemas of their configurations."""

import json

import pytest
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render, versions

from hack.nativelink_schema import SCHEMAS, normalised
from testkit.trees import values_of


def test_a_newer_version_is_rendered_as_the_newest_known_one() -> None:
    def tree(version: str) -> dict[str, str]:
        files = render.tree(values_of(nativelink_version=version))
        return {path: text.replace(f":{version}", ":VERSION") for path, text in files.items()}

    assert tree("v9.0.0") == tree(f"{versions.NEWEST}-ours") == tree(versions.NEWEST)
    assert tree("v1.3.2") != tree(versions.NEWEST)


@pytest.mark.parametrize("version", ["v1.5.0", "v1.3.1", "latest", ""])
def test_a_version_without_a_row_is_not_known(version: str) -> None:
    with pytest.raises(versions.UnknownVersionError):
        versions.row(version)


@pytest.mark.parametrize("version", versions.VERSIONS)
def test_each_version_has_a_schema_as_the_script_writes_it(version: str) -> None:
    schema = json.loads((SCHEMAS / f"nativelink-{version}.schema.json").read_text())
    assert normalised(schema, version) == schema


def test_a_schema_is_written_without_prose_and_with_what_nativelink_wants() -> None:
    shard = {"properties": {"description": {"type": "string", "description": "Prose."}}, "required": ["store"]}
    assert normalised({"title": "CasConfig", "examples": [1], "$defs": {"ShardConfig": shard}}, "v1.0.0") == {
        "title": "NativeLink v1.0.0",
        "$defs": {
            "ShardConfig": {"properties": {"description": {"type": "string"}}, "required": ["store", "weight"]},
        },
    }

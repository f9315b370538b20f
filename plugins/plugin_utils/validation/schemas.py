"""Compares values and rendered objects with the Kubernetes API's own OpenAPI schemas, without a cluster.

The package kubernetes-validate ships the schemas of each minor version. They use few keywords, which `shape_findings`
reads directly: a general validator of JSON Schema takes a hundred times as long for a cluster's objects.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from ..findings import Findings
from ..quantities import KubernetesVersion, QuantityError
from ..specs import Yaml
from .formats import nearest, one_of, shown
from .types import KINDS, item_path

Schema = Mapping[str, Any]
Found = tuple[str, str, str]

_FOLDER = re.compile(r"v(\d+)\.(\d+)\.\d+-local-strict")
_NAMES = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "array": "list", "object": "dict"}
_TYPES = {name: KINDS[kind] for name, kind in _NAMES.items()}
_UNKNOWN = "unknown key"


def definition_findings(name: str, path: str, value: Yaml, minimum: str | None) -> Findings:
    """Yield the faults of `value` at `path` as a `name` of the API, such as io.k8s.api.core.v1.Toleration."""

    def findings_of(version: KubernetesVersion) -> list[Found]:
        return list(shape_findings(definitions(version), definitions(version)[name], path, value))

    for finding in findings_of(shipped_version(minimum)):
        if since := known_since(finding, findings_of, minimum):
            remedy = f'remove it, or write preflight_minimum_kubernetes: "{since}" if the cluster is that new'
            yield finding[0], f"is unknown in Kubernetes {minimum}", remedy
        else:
            yield finding


@lru_cache(maxsize=1024)
def text_findings(version: KubernetesVersion, text: str) -> tuple[Found, ...]:
    """The faults of an object in YAML; none for a custom resource, whose schema is its operator's."""
    item = yaml.load(text, yaml.CSafeLoader)
    name = _kinds(version).get((item["apiVersion"], item["kind"]))
    if name is None:
        return ()
    return tuple(shape_findings(definitions(version), definitions(version)[name], "", item))


def shape_findings(definitions: Mapping[str, Schema], schema: Schema, path: str, value: Yaml) -> Findings:
    """Unknown and missing keys, wrong types and numbers out of range; `definitions` are what `schema` refers to."""
    while "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    if value is None:
        return  # the API server drops it; a required field is looked for in its mapping
    types = _types(schema)
    if types and not any(_is(kind, value) for kind in types):
        nouns = " or ".join(_TYPES[kind][1] for kind in types)
        quote = "string" in types and not isinstance(value, list | dict)
        yield path, f"is {shown(value)}, not {nouns}", "put it in quotes" if quote else f"write {nouns}"
    elif schema.get("format") == "int32" and not -(2**31) <= value < 2**31:
        yield path, f"is {value}, which does not fit into 32 bits", "write a smaller number"
    elif isinstance(value, list):
        for index, item in enumerate(value):
            where = item_path(path, index, item)
            yield from shape_findings(definitions, schema.get("items", {}), where, item)
            if item is None:
                yield where, "has no value", "give it one, or remove the line"
    elif isinstance(value, dict):
        known = schema.get("properties", {})
        other = schema.get("additionalProperties", True)
        for key, item in value.items():
            where = f"{path}.{key}" if path else str(key)
            if key in known:
                yield from shape_findings(definitions, known[key], where, item)
            elif other is False:
                yield where, _UNKNOWN, one_of(nearest(str(key), tuple(known), 0.6), known)
            elif isinstance(other, dict):
                yield from shape_findings(definitions, other, where, item)
        for key in schema.get("required", ()):
            if value.get(key) is None:
                yield f"{path}.{key}" if path else key, "is not set", "set it"


def _types(schema: Schema) -> list[str]:
    """The types that a schema allows; none for anything."""
    stated = [choice.get("type", []) for choice in schema.get("oneOf", (schema,))]
    return [kind for kinds in stated for kind in ([kinds] if isinstance(kinds, str) else kinds) if kind != "null"]


def _is(kind: str, value: Yaml) -> bool:
    if isinstance(value, bool) and kind in ("integer", "number"):
        return False
    whole = kind == "integer" and isinstance(value, float) and value.is_integer()
    return whole or isinstance(value, _TYPES[kind][0])


def known_since(
    finding: Found, findings_of: Callable[[KubernetesVersion], Iterable[Found]], minimum: str | None
) -> KubernetesVersion | None:
    """The first version that knows an unknown key; None if the key is a mistake."""
    if finding[1] != _UNKNOWN:
        return None
    newer = (version for version in _shipped() if version > shipped_version(minimum))
    return next((version for version in newer if finding[0] not in {each[0] for each in findings_of(version)}), None)


def shipped_version(minimum: str | None) -> KubernetesVersion:
    """The newest version with schemas that is not newer than `minimum`, such as "1.31"; else the oldest one.

    Without a `minimum` that can be read, which has its own finding, it is the newest.
    """
    try:
        wanted = KubernetesVersion.parse(minimum or "")
    except QuantityError:
        return _shipped()[-1]
    older = [version for version in _shipped() if version <= wanted]
    return older[-1] if older else _shipped()[0]


@cache
def _folder() -> Path:
    # Not imported: that takes as long as checking ten clusters.
    package = find_spec("kubernetes_validate")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the Python package kubernetes-validate is not installed: run pip install for it")
    return Path(package.origin).parent / "kubernetes-json-schema"


@cache
def _shipped() -> tuple[KubernetesVersion, ...]:
    """The minor versions that have schemas, the oldest first."""
    names = (_FOLDER.fullmatch(folder.name) for folder in _folder().iterdir())
    return tuple(sorted(KubernetesVersion(int(name[1]), int(name[2])) for name in names if name))


@cache
def definitions(version: KubernetesVersion) -> Mapping[str, Schema]:
    """Every type of the API of a version, by its full name."""
    (folder,) = _folder().glob(f"v{version}.*-local-strict")
    return json.loads((folder / "_definitions.json").read_text())["$defs"]


@cache
def _kinds(version: KubernetesVersion) -> Mapping[tuple[str, str], str]:
    """The full name of each kind's type, by apiVersion and kind."""
    return {
        ("/".join(filter(None, (kind["group"], kind["version"]))), kind["kind"]): name
        for name, schema in definitions(version).items()
        for kind in schema.get("x-kubernetes-group-version-kind", ())
        if name.startswith("io.k8s.")
    }

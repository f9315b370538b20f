"""The variables: what roles/*/meta/argument_specs.yml and roles/*/defaults/main.yml say, and what follows from them.

`python -m nativelink_gitops.specs --write` (with `plugins` on PYTHONPATH) brings everything that is generated from them
up to date: schemas/cluster.schema.json, docs/variables.md and the tables in the roles' README.md; `--check` fails where
something is not.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = ("preflight", "storage_classes", "keda", "ingress", "low_latency", "nativelink", "gitops")
# The connection variables belong to no role, so preflight lists them; they are required.
PREFIXES = ("cluster_", *(f"{role}_" for role in ROLES))
# What YAML can hold: None, bool, int, float, str, and lists and dicts of them.
Yaml = Any
MISSING: Yaml = type("Missing", (), {"__repr__": lambda self: "MISSING", "__deepcopy__": lambda self, memo: self})()

_TRUE = {"true", "yes", "on", "1", "y", "t"}
_FALSE = {"false", "no", "off", "0", "n", "f"}


@dataclass(frozen=True)
class Option:
    """One variable, or one key of a variable's value. `type` and `elements` are those of argument_specs."""

    name: str
    role: str
    type: str = "str"
    elements: str = "raw"
    required: bool = False
    choices: tuple[Any, ...] = ()
    default: Any = MISSING
    description: tuple[str, ...] = ()
    options: Mapping[str, Option] = field(default_factory=dict)
    no_log: bool = False

    @property
    def element(self) -> Option:
        """What each item of a list is."""
        return Option(
            self.name, self.role, self.elements, choices=self.choices, options=self.options, no_log=self.no_log
        )


@dataclass(frozen=True)
class Unresolved:
    """Stands for a value whose template failed; `problem` is Ansible's message."""

    problem: str


@cache
def specs() -> Mapping[str, Option]:
    """Every variable of every role, by name."""
    return {
        option.name: option
        for role in ROLES
        for option in _options(
            role, _load(ROOT / "roles" / role / "meta/argument_specs.yml").get("argument_specs", {}).get("main", {})
        ).values()
    }


@cache
def defaults() -> Mapping[str, Any]:
    """The defaults of all roles as they stand in defaults/main.yml: templates are not filled in."""
    return {
        name: value
        for role in ROLES
        for name, value in _load(ROOT / "roles" / role / "defaults/main.yml").items()
        if not name.startswith("__")
    }


def effective(variables: Mapping[str, Any], template: Callable[[Any], Any]) -> dict[str, Any]:
    """Plain Python values of the known variables of one cluster, as far as they are set, and its name as `cluster`.

    `variables` are the host's own, with the role defaults beneath if templates refer to them. `template` is Ansible's
    templar over the same variables; only values that hold a template reach it. Where it raises, the value is an
    `Unresolved`.
    """
    values: dict[str, Any] = {"cluster": str(variables["inventory_hostname"])}
    for name, option in specs().items():
        value = variables.get(name, option.default)
        if value is MISSING:
            continue
        if value is option.default and name not in templated_defaults():
            values[name] = deepcopy(value)
            continue
        try:
            values[name] = _coerced(option, _plain(value, template))
        except Exception as error:  # whatever the templar's plugins raise is the user's to read
            values[name] = Unresolved(" ".join(str(error).split()))
    return values


def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `values` in which the defaults of structured variables' keys (a pool's, for example) are filled in."""
    return {
        name: _filled(specs()[name], value) if name in specs() else deepcopy(value) for name, value in values.items()
    }


def _load(path: Path) -> dict[str, Any]:
    return (yaml.load(path.read_text(), yaml.CSafeLoader) or {}) if path.is_file() else {}


def _options(role: str, spec: Mapping[str, Any], top: bool = True) -> dict[str, Option]:
    found = {}
    for name, says in (spec.get("options") or {}).items():
        text = says.get("description") or says.get("short_description") or ()
        found[name] = Option(
            name=name,
            role=role,
            type=says.get("type", "str"),
            elements=says.get("elements", "raw"),
            required=says.get("required", False),
            choices=tuple(says.get("choices") or ()),
            default=defaults().get(name, says.get("default", MISSING)) if top else says.get("default", MISSING),
            description=(text,) if isinstance(text, str) else tuple(text),
            options=_options(role, says, top=False),
            no_log=says.get("no_log", False),
        )
    return found


@cache
def templated_defaults() -> frozenset[str]:
    """Names of the variables whose role default holds a template."""
    return frozenset(name for name, option in specs().items() if holds_template(option.default))


def holds_template(value: Yaml) -> bool:
    """Whether a text in `value` looks like one that Ansible fills in."""
    if isinstance(value, Mapping):
        return any(map(holds_template, value.values()))
    if isinstance(value, list | tuple):
        return any(map(holds_template, value))
    return isinstance(value, str) and ("{{" in value or "{%" in value or "{#" in value)


def _plain(value: Yaml, template: Callable[[Any], Any]) -> Yaml:
    """`value` without Ansible's tagged types, its templates filled in."""
    kind = type(value)
    if value is None or kind in (bool, int, float):
        return value
    if isinstance(value, str):
        return _untagged(template(value) if holds_template(value) else value)
    if isinstance(value, Mapping):
        return {_untagged(key): _plain(item, template) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, template) for item in value]
    if isinstance(value, int | float):
        return _untagged(value)
    return _untagged(template(value))  # a vault string, for example


def _untagged(value: Yaml) -> Yaml:
    """`value` in the types that YAML knows; what Ansible hands out are subclasses of them."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return "".join((value,)) if type(value) is not str else value
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {_untagged(key): _untagged(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_untagged(item) for item in value]
    return str(value)  # dates: YAML's own idea of an unquoted 2026-01-01


def _coerced(option: Option, value: Yaml) -> Yaml:
    """`value` in the option's type where that loses nothing; else as it is, for validation to refuse."""
    kind = option.type
    if kind in ("dict", "list") and not isinstance(value, dict | list):
        return value
    if kind == "list" and isinstance(value, list):
        return [_coerced(option.element, item) for item in value]
    if kind == "dict" and isinstance(value, dict):
        return {
            key: _coerced(option.options[key], item) if key in option.options else item for key, item in value.items()
        }
    if kind == "int" and isinstance(value, str) and re.fullmatch(r"-?\d+", value):
        return int(value)
    if kind == "float" and isinstance(value, str) and re.fullmatch(r"-?\d+(\.\d+)?", value):
        return float(value)
    if kind == "bool" and isinstance(value, str) and value.lower() in _TRUE | _FALSE:
        return value.lower() in _TRUE
    if kind in ("str", "path") and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value


def _filled(option: Option, value: Yaml) -> Yaml:
    if option.type == "list" and isinstance(value, list) and option.options:
        return [_filled(option.element, item) for item in value]
    if option.type == "dict" and isinstance(value, Mapping) and option.options:
        missing = {
            name: deepcopy(key.default)
            for name, key in option.options.items()
            if name not in value and key.default is not MISSING
        }
        return {
            name: _filled(option.options[name], item) if name in option.options else deepcopy(item)
            for name, item in {**value, **missing}.items()
        }
    return deepcopy(value)


# Generated files -------------------------------------------------------------------------------------------------

_JSON_TYPES = {"str": "string", "path": "string", "int": "integer", "float": "number", "bool": "boolean"}
# Of Ansible's documentation: code, a value, an option. What is in the brackets may have a pair of its own.
_MARKUP = re.compile(r"\b[CVO]\(((?:[^()]|\([^()]*\))*)\)")
_TEMPLATE = {"type": "string", "pattern": r"\{[{%]"}


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of an inventory file; `#/$defs/variables` is that of a group_vars or host_vars file."""
    variables = {
        "type": "object",
        "properties": {name: _schema(option) for name, option in sorted(specs().items())},
        "propertyNames": {"anyOf": [{"enum": sorted(specs())}, {"not": {"pattern": f"^({'|'.join(PREFIXES)})"}}]},
    }
    named = {"type": ["object", "null"]}
    group = {
        "type": ["object", "null"],
        "properties": {
            "hosts": {**named, "additionalProperties": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/variables"}]}},
            "vars": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/variables"}]},
            "children": {**named, "additionalProperties": {"$ref": "#/$defs/group"}},
        },
        "additionalProperties": False,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Inventory of NativeLink clusters: a host is a cluster",
        "description": "Generated from roles/*/meta/argument_specs.yml.",
        "type": "object",
        "additionalProperties": {"$ref": "#/$defs/group"},
        "$defs": {"group": group, "variables": variables},
    }


def _schema(option: Option) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    if option.description:
        schema["description"] = _MARKUP.sub(r"\1", " ".join(option.description))
    if option.default is not MISSING:
        schema["default"] = option.default
    if option.type == "list":
        schema["anyOf"] = [{"type": "array", "items": _schema(option.element)}, _TEMPLATE]
    elif option.type == "dict":
        keys: dict[str, Any] = {"type": "object"}
        if option.options:
            keys["properties"] = {name: _schema(key) for name, key in option.options.items()}
            keys["additionalProperties"] = False
            if required := [name for name, key in option.options.items() if key.required]:
                keys["required"] = required
        schema["anyOf"] = [keys, _TEMPLATE]
    elif option.choices:
        schema["anyOf"] = [{"enum": list(option.choices)}, _TEMPLATE]
    elif option.type in ("str", "path"):
        schema["type"] = ["string", "integer"]
    elif option.type in _JSON_TYPES:
        schema["anyOf"] = [{"type": _JSON_TYPES[option.type]}, _TEMPLATE]
    return schema


def variables_markdown() -> str:
    """docs/variables.md: every variable of every role."""
    parts = [
        "<!-- Generated from roles/*/meta/argument_specs.yml and roles/*/defaults/main.yml: change those. -->",
        "# Variables",
        "Set in the inventory, for a cluster (host), for a group or for all. "
        "Editors check them with `schemas/cluster.schema.json`.",
    ]
    for role in ROLES:
        parts += [f"## {role}", _tables(role)]
    return "\n\n".join(parts) + "\n"


def _tables(role: str) -> str:
    """The table of a role's variables, and one more for each variable that has keys of its own."""
    options = [option for option in specs().values() if option.role == role]
    tables = [_table(options)]
    for path, option in (pair for top in options for pair in _structured(top.name, top)):
        of = "each item of " if option.type == "list" else ""
        tables += [f"Keys of {of}`{path}`:", _table(option.options.values())]
    return "\n\n".join(tables)


def _structured(path: str, option: Option) -> Iterator[tuple[str, Option]]:
    if option.options:
        yield path, option
        for key in option.options.values():
            yield from _structured(f"{path}[].{key.name}" if option.type == "list" else f"{path}.{key.name}", key)


def _table(options: Iterable[Option]) -> str:
    rows = ["| Name | Type | Default | Description |", "|---|---|---|---|"]
    for option in options:
        kind = f"list of {option.elements}" if option.type == "list" and option.elements != "raw" else option.type
        default = "**required**" if option.required else "" if option.default is MISSING else _code(option.default)
        text = _MARKUP.sub(r"`\1`", " ".join(option.description))
        if option.choices:
            text = f"{text} One of {', '.join(_code(choice) for choice in option.choices)}.".strip()
        rows.append(f"| `{option.name}` | {kind} | {default} | {_cell(text)} |")
    return "\n".join(rows)


def _code(value: Yaml) -> str:
    return _cell(f"`{value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)}`")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


_MARKERS = re.compile(r"(<!-- variables -->\n).*?(<!-- /variables -->)", re.DOTALL)


def generated() -> dict[Path, str]:
    """What each generated file should hold, by absolute path; of a README only the part between the markers changes."""
    files = {
        ROOT / "schemas/cluster.schema.json": json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n",
        ROOT / "docs/variables.md": variables_markdown(),
    }
    for role in ROLES:
        readme = ROOT / "roles" / role / "README.md"
        if readme.is_file():
            table = _tables(role)
            files[readme] = _MARKERS.sub(lambda found, t=table: f"{found[1]}\n{t}\n\n{found[2]}", readme.read_text())
    return files


def main() -> int:
    """Command line: `--write` or `--check` the generated files; the status of `--check` is 1 when one is stale."""
    parser = argparse.ArgumentParser(description="Keep what is generated from the roles' variables current.")
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--check", action="store_true")
    mode.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    stale = {path: text for path, text in generated().items() if not path.is_file() or path.read_text() != text}
    for path, text in stale.items():
        print(f"{path.relative_to(ROOT)}: {'written' if arguments.write else 'is not what the roles say'}")
        if arguments.write:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    return int(arguments.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())

"""The variables: what roles/*/meta/argument_specs.yml and roles/*/defaults/main.yml say, and what follows from them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
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
Values = Mapping[str, Any]
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
def options() -> Mapping[str, Option]:
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
    for name, option in options().items():
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
        name: _filled(options()[name], value) if name in options() else deepcopy(value)
        for name, value in values.items()
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
    return frozenset(name for name, option in options().items() if holds_template(option.default))


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

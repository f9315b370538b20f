"""Checks the names of variables, and their values against the types in argument_specs.yml."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from .. import specs
from ..findings import Findings
from ..quantities import QuantityError
from ..specs import MISSING, Option, Values, Yaml
from .formats import checks, nearest, one_of, shown


class FaultyValue(KeyError):
    """A rule read a variable that is invalid or not set."""


class CheckedValues(dict[str, Any]):
    """The valid values of one cluster. Reading any other value ends the rule that reads it."""

    def __init__(self) -> None:
        """Start with no value."""
        super().__init__()
        self.shortened: set[str] = set()  # lists without their invalid items

    def whole(self, name: str) -> Yaml:
        """The value of a variable, unless invalid items were removed from it."""
        if name in self.shortened:
            raise FaultyValue(name)
        return self[name]

    def __missing__(self, name: str) -> Yaml:
        """Raise FaultyValue for a value that is invalid or not set."""
        raise FaultyValue(name)


def apply_rule(rule: Callable[[Any], Findings], values: Values) -> list[tuple[str, str, str]]:
    """The findings of a rule, up to the first invalid value that it reads."""
    findings = []
    try:
        for finding in rule(values):
            findings.append(finding)
    except (FaultyValue, QuantityError):
        pass  # the check of the variable itself reports it
    return findings


def checked(variables: Values) -> tuple[CheckedValues, list[tuple[str, str, str]]]:
    """The variables that have a valid type, format and range, and the findings for the others."""
    valid = CheckedValues()
    findings: list[tuple[str, str, str]] = []
    for name, value in variables.items():
        option = specs.options().get(name)
        if name == "cluster":
            found = list(format_findings(name, name, value, MISSING))
        elif option is None:
            found = list(_unknown(name, variables))
        else:
            found = list(type_findings(name, name, option, value))
        findings += found
        if not found:
            valid[name] = value
        elif option is not None and option.type == "list" and isinstance(value, list):
            # An invalid pool must not hide errors in the others.
            valid[name] = [
                item
                for index, item in enumerate(value)
                if not any(type_findings(item_path(name, index, item), f"{name}[]", option.element, item))
            ]
            valid.shortened.add(name)
    for name, option in specs.options().items():
        if option.required and name not in variables:
            findings.append((name, "is not set", "set it in the inventory"))
    return valid, findings


def _unknown(name: str, variables: Values) -> Findings:
    if name.startswith("__"):
        return
    if name in specs.RENAMED:
        yield name, "has another name in this release", f"write {specs.RENAMED[name]}"
        return
    has_prefix = name.startswith(specs.PREFIXES)
    near = nearest(name, tuple(specs.options()), 0.7 if has_prefix else 0.88)
    if has_prefix:
        remedy = f"did you mean {near}? If not, rename it" if near else "remove or rename it"
        yield name, "unknown variable", f"{remedy}: this prefix is reserved"
    elif missing := _without_prefix(name):
        problem, remedy = "unknown variable, because its prefix is missing", f"write {' or '.join(missing)}"
        if taken := [full for full in missing if _is_set(full, variables)]:
            problem, remedy = f"{problem}, and {taken[0]} is set as well", "remove it, or choose another name"
        yield name, problem, remedy
    elif near:
        yield name, "unknown variable", f"did you mean {near}? If not, rename it so that the two cannot be confused"


def _without_prefix(name: str) -> list[str]:
    """The variables that `name` may stand for without its prefix.

    A single word, such as `version`, is more likely to be a variable of the user's own.
    """
    wanted = (f"{prefix}{name}" for prefix in specs.PREFIXES if "_" in name)
    return [full for full in wanted if full in specs.options()]


def _is_set(name: str, variables: Values) -> bool:
    """Return whether a variable has another value than its default. One with a template in it is not told apart."""
    return name not in specs.templated_defaults() and variables.get(name) != specs.options()[name].default


KINDS: Mapping[str, tuple[type | tuple[type, ...], str]] = {
    "str": (str, "text"),
    "path": (str, "a path"),
    "int": (int, "a whole number"),
    "float": ((int, float), "a number"),
    "bool": (bool, "true or false"),
    "list": (list, "a list"),
    "dict": (dict, "a mapping"),
}
"""The types of values and their words in messages, by the names that Ansible has for them."""


def type_findings(path: str, pattern: str, option: Option, value: Yaml) -> Findings:
    """Faults of `value` at `path`; `pattern` is the path without the names and numbers of list items."""
    if isinstance(value, specs.Unresolved):
        yield path, value.problem, value.remedy
        return
    if value is None:
        yield path, "has no value", "write a value, or remove the line"
        return
    kind, noun = KINDS.get(option.type, (object, ""))
    if not isinstance(value, kind) or (isinstance(value, bool) and option.type in ("int", "float")):
        text = "the text " if isinstance(value, str) else ""
        problem = f"is {text}{shown(value)}, not {noun}" if not option.no_log else f"is not {noun}"
        yield path, problem, _typed(path, option, value) or f"write {noun}"
    elif option.type == "list":
        findings = [
            finding
            for index, item in enumerate(value)
            for finding in type_findings(item_path(path, index, item), f"{pattern}[]", option.element, item)
        ]
        yield from findings or format_findings(path, pattern, value, option.default)
    elif option.choices and value not in option.choices:
        choices = [str(choice) if choice != "" else '""' for choice in option.choices]
        near = nearest(str(value), tuple(choices), 0.6)
        yield path, f"is {shown(value)}, which is not a valid choice", one_of(near, choices)
    elif option.type == "dict" and option.options:
        yield from _keyed(path, pattern, option, value)
    elif option.required and value == "":
        yield path, "is empty", "write a value"
    else:
        yield from format_findings(path, pattern, value, option.default)


def _keyed(path: str, pattern: str, option: Option, value: Values) -> Findings:
    for key, item in value.items():
        if key in option.options:
            yield from type_findings(f"{path}.{key}", f"{pattern}.{key}", option.options[key], item)
        else:
            near = nearest(str(key), tuple(option.options), 0.6)
            yield f"{path}.{key}", "unknown key", one_of(near, tuple(option.options))
    for key in option.options.values():
        if key.required and key.name not in value:
            yield f"{path}.{key.name}", "is not set", "set it"


_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")


def _typed(path: str, option: Option, value: Yaml) -> str:
    """The remedy for a value that only has the wrong type, "" for any other. The roles convert no values."""
    if option.type in ("str", "path"):
        return "put it in quotes" if not isinstance(value, list | dict) else ""
    if not isinstance(value, str):
        return ""
    meant: bool | int | None = None
    if option.type == "bool" and value.lower() in (*_TRUE, *_FALSE):
        meant = value.lower() in _TRUE
    elif option.type in ("int", "float") and re.fullmatch("-?[0-9]{1,10}", value):
        meant = int(value)
    if meant is None:
        return ""
    remedy = f"write {shown(meant)} without quotes"
    # A variable as a whole may come from the command line, where NAME=VALUE is always text.
    return f"{remedy}; on the command line, write -e '{json.dumps({path: meant})}'" if path == option.name else remedy


def item_path(path: str, index: int, item: Yaml) -> str:
    """`path` of an item of a list, which is named by its own name if it has one."""
    name = item.get("name") if isinstance(item, dict) else None
    return f"{path}[{name if isinstance(name, str) and name else index}]"


def format_findings(path: str, pattern: str, value: Yaml, default: Yaml) -> Findings:
    """Findings of the formats that apply to `value`."""
    if value == "" and (default == "" or specs.holds_template(default)):
        return  # an empty text means: not set
    for check in checks(pattern):
        yield from ((path, problem, remedy) for problem, remedy in check(value))

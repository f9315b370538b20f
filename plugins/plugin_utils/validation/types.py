"""The types of values: what argument_specs.yml says of each variable, and names that no role has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .. import specs
from ..findings import Findings
from ..quantities import QuantityError
from ..specs import MISSING, Option, Values, Yaml
from .formats import checks, nearest, one_of, shown


class FaultyValue(KeyError):
    """A rule read a variable that has a fault of its own, or that no role has."""


class CheckedValues(dict[str, Any]):
    """The values of one cluster that have no fault of their own. Reading another one ends the rule that reads it."""

    def __init__(self) -> None:
        """Start with no value."""
        super().__init__()
        self.shortened: set[str] = set()  # lists that have lost their faulty items

    def whole(self, name: str) -> Yaml:
        """A variable of which nothing was left out."""
        if name in self.shortened:
            raise FaultyValue(name)
        return self[name]

    def __missing__(self, name: str) -> Yaml:
        """Refuse to hand out a value that is faulty or not set."""
        raise FaultyValue(name)


def apply_rule(rule: Callable[[Any], Findings], values: Values) -> list[tuple[str, str, str]]:
    """What a rule finds in the values; a value that it needs and that has a fault of its own ends it."""
    findings = []
    try:
        for finding in rule(values):
            findings.append(finding)
    except (FaultyValue, QuantityError):
        pass  # reported where the variable itself is checked
    return findings


def checked(variables: Values) -> tuple[CheckedValues, list[tuple[str, str, str]]]:
    """The variables without a fault of type, format or range, and what is to be findings of the others."""
    valid = CheckedValues()
    findings: list[tuple[str, str, str]] = []
    for name, value in variables.items():
        option = specs.options().get(name)
        if name == "cluster":
            found = list(format_findings(name, name, value, MISSING))
        elif option is None:
            found = list(_unknown(name))
        else:
            found = list(type_findings(name, name, option, value))
        findings += found
        if not found:
            valid[name] = value
        elif option is not None and option.type == "list" and isinstance(value, list):
            # One bad pool hides no fault of the others.
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


def _unknown(name: str) -> Findings:
    if name.startswith("__"):
        return
    ours = name.startswith(specs.PREFIXES)
    near = nearest(name, tuple(specs.options()), 0.7 if ours else 0.88)
    if ours and near:
        yield name, "is a variable that no role knows", f"write {near}, or give a variable of your own another prefix"
    elif ours:
        yield name, "is a variable that no role knows", "take it out, or give a variable of your own another prefix"
    elif near:
        yield name, "is a variable that no role knows", f"write {near}, or give it a name that is less like it"


_KINDS: Mapping[str, tuple[type | tuple[type, ...], str]] = {
    "str": (str, "text"),
    "path": (str, "a path"),
    "int": (int, "a whole number"),
    "float": ((int, float), "a number"),
    "bool": (bool, "true or false"),
    "list": (list, "a list"),
    "dict": (dict, "a mapping"),
}


def type_findings(path: str, pattern: str, option: Option, value: Yaml) -> Findings:
    """Faults of `value` at `path`; `pattern` is the path without the names and numbers of list items."""
    if isinstance(value, specs.Unresolved):
        yield path, f"its template fails ({value.problem})", "define what it refers to, or write the value itself"
        return
    if value is None:
        yield path, "has no value", "give it one, or take the line out"
        return
    kind, noun = _KINDS.get(option.type, (object, ""))
    if not isinstance(value, kind) or (isinstance(value, bool) and option.type in ("int", "float")):
        fix = "put it in quotes" if option.type in ("str", "path") and not isinstance(value, list | dict) else None
        yield path, f"is {'something' if option.no_log else shown(value)}, not {noun}", fix or f"write {noun}"
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
        yield path, f"is {shown(value)}, which is no choice", one_of(near, choices)
    elif option.type == "dict" and option.options:
        yield from _keyed(path, pattern, option, value)
    elif option.required and value == "":
        yield path, "is empty", "give it a value"
    else:
        yield from format_findings(path, pattern, value, option.default)


def _keyed(path: str, pattern: str, option: Option, value: Values) -> Findings:
    for key, item in value.items():
        if key in option.options:
            yield from type_findings(f"{path}.{key}", f"{pattern}.{key}", option.options[key], item)
        else:
            near = nearest(str(key), tuple(option.options), 0.6)
            yield f"{path}.{key}", "is a key that nobody knows", one_of(near, tuple(option.options))
    for key in option.options.values():
        if key.required and key.name not in value:
            yield f"{path}.{key.name}", "is not set", "set it"


def item_path(path: str, index: int, item: Yaml) -> str:
    """`path` of a list's item: its own name says more than its number."""
    name = item.get("name") if isinstance(item, dict) else None
    return f"{path}[{name if isinstance(name, str) and name else index}]"


def format_findings(path: str, pattern: str, value: Yaml, default: Yaml) -> Findings:
    """What the formats of FORMATS find in `value`."""
    if value == "" and (default == "" or specs.holds_template(default)):
        return  # empty says: not set
    for check in checks(pattern):
        yield from ((path, problem, fix) for problem, fix in check(value))

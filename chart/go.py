"""Operands of Go templates, and what is known of their types."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

PREFIX = "nativelink"
NONE = '(index (dict) "")'


class Untranslatable(Exception):
    """Python that this module cannot express as a Go template; the message begins with file and line."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """What is known of a type: that of a built-in type or of a class, and the types of what it holds."""

    name: str = ""
    parts: tuple[Kind, ...] = ()

    @property
    def element(self) -> Kind:
        """The type of each item of a list."""
        return self.parts[0] if self.parts and len(set(self.parts)) == 1 else UNKNOWN

    @property
    def value(self) -> Kind:
        """The type of each value of a dict."""
        return self.parts[-1] if self.name == "dict" and self.parts else UNKNOWN


UNKNOWN = Kind()
STR, INT, BOOL, FLOAT, LIST, DICT = map(Kind, ("str", "int", "bool", "float", "list", "dict"))
FUNCTION, NOTHING = Kind("function"), Kind("none")
LISTS = ("list", "tuple", "set")


@dataclasses.dataclass(frozen=True)
class Go:
    """An operand of a Go template, and its type."""

    code: str
    kind: Kind = UNKNOWN


# The dataclasses that became dicts, by name.
RECORDS: dict[str, Any] = {}


def quoted(text: str) -> str:
    """A Go string literal."""
    return json.dumps(text, ensure_ascii=False)


def constant(value: Any) -> Go:
    """A value of Python as Go. A dataclass becomes a dict."""
    if value is None:
        return Go("nil", NOTHING)
    if isinstance(value, bool):
        return Go("true" if value else "false", BOOL)
    if isinstance(value, int | float):
        return Go(repr(value), Kind(type(value).__name__))
    if isinstance(value, str):
        return Go(quoted(value), STR)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        RECORDS[type(value).__name__] = type(value)
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return Go(constant(fields).code, Kind(type(value).__name__))
    if isinstance(value, Mapping):
        items = [f"{quoted(str(key))} {constant(item).code}" for key, item in value.items()]
        kinds = {constant(item).kind for item in value.values()}
        kind = Kind("dict", (STR, common(*kinds)))
        return Go(f"(dict {' '.join(items)})" if items else "dict", kind)
    if isinstance(value, list | tuple):
        found = [constant(item) for item in value]
        kind = Kind("tuple", tuple(item.kind for item in found))
        return Go(f"(list {' '.join(item.code for item in found)})" if found else "list", kind)
    raise TypeError(f"{value!r} is not a constant of a Go template")


def common(*kinds: Kind) -> Kind:
    """The type of values that are of one of these types."""
    known = sorted({kind for kind in kinds if kind not in (NOTHING, UNKNOWN)}, key=repr) or [UNKNOWN]
    names = {kind.name for kind in known}
    found = next((kind for kind in known if kind.parts), known[0])
    return found if len(names) == 1 or names <= set(LISTS) else UNKNOWN


def bare(code: str) -> str:
    """An operand as a pipeline, without the parentheses around it."""
    return code[1:-1] if code.startswith("(") and code.endswith(")") else code

"""Functions that test_translation.py translates to Go, and runs in both languages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

LIMITS = {"small": 1, "large": 2}
NAME = re.compile(r"[a-z]+")


@dataclass(frozen=True)
class Point:
    """A record with a default and a property."""

    x: int
    y: int = 7

    @property
    def total(self) -> int:
        """The sum."""
        return self.x + self.y


class Shape:
    """An object with a method."""

    def __init__(self, name: str) -> None:
        self.name = name

    def named(self, suffix: str) -> str:
        """The name, and more."""
        return self.name + suffix


def early_return(number: int) -> str:
    """What follows an `if` that returns."""
    if number > 3:
        return "large"
    text = "small"
    if number == 3:
        text = f"exactly {number}"
    return text


def short_circuit(found: Mapping[str, Any]) -> bool:
    """`first(...)` fails on an empty list, so it must not be called for one."""
    items: list[str] = found["items"]
    return bool(items and first(items) == "a")


def first(items: list[str]) -> str:
    """The first item."""
    return items[0]


def merged(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, Any]:
    """A shallow merge; neither side is changed."""
    return {**left, "own": LIMITS["large"], **right}


def comprehended(numbers: list[int]) -> dict[str, Any]:
    """Comprehensions with conditions, and what consumes generators."""
    return {
        "doubled": [number * 2 for number in numbers if number > 1],
        "pairs": [f"{index}={number}" for index, number in enumerate(numbers)],
        "any": any(number == 2 for number in numbers),
        "all": all(number < 3 for number in numbers),
        "most": max(number for number in numbers),
        "next": next((f"n{number}" for number in numbers if number > 1), "none"),
        "joined": ",".join(str(number) for number in numbers),
    }


def yielded(numbers: list[int]) -> Iterator[str]:
    """A generator with another one inside."""
    for number in numbers:
        if number == 2:
            continue
        yield f"{number}"
    yield from more()


def more() -> Iterator[str]:
    """Two texts."""
    yield "x"
    yield "y"


def texts(text: str) -> list[Any]:
    """Methods and patterns of texts."""
    before, separator, after = text.rpartition(":")
    return [
        text.removeprefix("a"),
        before,
        separator,
        after,
        text.startswith("a"),
        bool(NAME.fullmatch(text)),
        "b" in text,
        f"{text!r}",
    ]


def records(number: int) -> list[Any]:
    """Dataclasses, classes, and keywords that a function collects."""
    point, shape = Point(number), Shape("square")
    return [point.total, shape.named("!"), collected("a", **{"k": "v"}, more="w")]


def collected(name: str, /, **labels: str) -> str:
    """The labels in the order of their keys."""
    return name + ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def endless(number: int) -> int:
    """A statement that Go templates lack."""
    while number:
        number -= 1
    return number


def returns_from_a_loop(numbers: list[int]) -> int:
    """Go templates have no return."""
    for number in numbers:
        return number
    return 0


UNORDERED = {"b": 1, "a": 2}


def unordered() -> list[str]:
    """Go's order of the keys is another one."""
    return [f"{name}={number}" for name, number in UNORDERED.items()]


def untyped(things):  # noqa: ANN001, ANN201 - the lack of a type is what the test is about
    """A loop over something of an unknown type."""
    return [thing for thing in things]  # noqa: C416 - a comprehension is what the test is about

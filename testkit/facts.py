"""Facts about objects and files: what stands at a place in them."""

import re
from collections.abc import Callable, Mapping
from typing import Any

_SHORT = {
    "pod": "spec.template.spec",
    "container": "spec.template.spec.containers.0",
    "simple": "schedulers.0.cache_lookup.scheduler.simple",
    "local": "workers.0.local",
}


def at(thing: Any, path: str) -> Any:
    """Return what is at a path such as ``container.env.LANG.value``, or None.

    Between the dots are keys, and for an item of a list its number, its `name`, or another key and its value, such
    as ``key=disk``. A key with dots is in quotes: ``metadata.annotations."a.b/c"``. ``*`` is all items or values; the
    answer is then a list. `_SHORT` has words for the beginning of long paths.
    """
    first, dot, rest = path.partition(".")
    return _walk(thing, re.findall(r'"[^"]*"|[^."]+', _SHORT.get(first, first) + dot + rest))


def _walk(thing: Any, steps: list[str]) -> Any:
    for number, quoted in enumerate(steps):
        step = quoted.strip('"')
        if thing is None:
            return None
        if step == "*":
            items = thing.values() if isinstance(thing, dict) else thing
            return [_walk(each, steps[number + 1 :]) for each in items]
        if isinstance(thing, dict):
            thing = thing.get(step)
        elif step.isdigit():
            thing = thing[int(step)] if int(step) < len(thing) else None
        else:
            key, _, value = step.rpartition("=")
            thing = next((each for each in thing if str(each.get(key or "name")) == value), None)
    return thing


def wrong(find: Callable[[str], Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return a line such as ``Deployment/x spec.replicas: is 2, not 1`` for each difference.

    `find` returns what has a name: an object, a parsed file, a text, a list of objects, or None. What is wanted of it
    is a value for each of some paths, a part of the text, an empty list, or None, if it must not exist.
    """
    lines = []
    for name, expected in wanted.items():
        thing = find(name)
        if isinstance(expected, dict):
            found = {f"{name} {path}": (at(thing, path), value) for path, value in expected.items()}
            lines += [f"{place}: is {is_!r}, not {value!r}" for place, (is_, value) in found.items() if is_ != value]
        elif isinstance(expected, str):
            lines += [] if expected in (thing or "") else [f"{name}: does not contain {expected!r}"]
        elif thing != expected:
            lines.append(f"{name}: is {thing!r}, not {expected!r}")
    return lines

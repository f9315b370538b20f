"""The few Jinja filters of the templates, which write YAML and JSON."""

import json
import re
import textwrap
from collections.abc import Mapping

import yaml

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9/._@-]*(?::[A-Za-z0-9/._@-]+)*|[0-9]+(?:m|[KMGTP]i)")
# YAML 1.1 or 1.2 reads these as something else than a text.
_RESERVED = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
# A text that is longer is folded, if it has printable ASCII characters only, and no two spaces in a row.
_LONG = 100
_FOLDABLE = re.compile(r"[!-~]+( [!-~]+)*")
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff\ufffe\uffff]")


def quoted(value: str) -> str:
    """A text as a YAML scalar, in quotes only where it would be read as something else without them."""
    if _PLAIN.fullmatch(value) and value.lower() not in _RESERVED:
        return value
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))


def to_nice_yaml(value: object) -> str:
    """`value` as YAML in block style, without a newline at the end: `indent` it to where it stands."""
    return "\n".join(_yaml_lines(value))


def to_json(value: object) -> str:
    """`value` as JSON as Go writes it: no blanks, the keys in alphabetical order, and these two line ends escaped."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def as_text(value: object) -> str:
    """A value of YAML as NativeLink, which knows texts only, should read it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def folded(text: str) -> str:
    """A text as lines of at most 100 characters, which a reader of YAML joins by spaces."""
    return "\n".join(textwrap.wrap(text, _LONG, break_long_words=False, break_on_hyphens=False))


def _yaml_lines(value: object) -> list[str]:
    """Faster than PyYAML's emitter by far, and lists are indented as yamllint wants it."""
    if isinstance(value, Mapping) and value:
        lines = []
        for key, item in value.items():
            inner = _yaml_lines(item)
            if isinstance(item, Mapping | list) and item:
                lines += [f"{_scalar(key)}:", *(f"  {line}" for line in inner)]
            elif isinstance(item, str) and len(item) > _LONG and _FOLDABLE.fullmatch(item):
                lines += [f"{_scalar(key)}: >-", *(f"  {line}" for line in folded(item).split("\n"))]
            else:
                lines.append(f"{_scalar(key)}: {inner[0]}")
        return lines
    if isinstance(value, list) and value:
        return [f"{'  ' if number else '- '}{line}" for item in value for number, line in enumerate(_yaml_lines(item))]
    return [_scalar(value)]


def _scalar(value: object) -> str:
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, float):
        return yaml.dump(value).splitlines()[0]
    return json.dumps(value)

"""What depends on NativeLink's version: roles/nativelink/files/versions.yml. Nothing else asks for a version."""

from dataclasses import dataclass
from typing import Any

import yaml

from .quantities import QuantityError
from .release import version_key
from .specs import ROOT

_DATA: dict[str, Any] = yaml.load((ROOT / "roles/nativelink/files/versions.yml").read_text(), yaml.CSafeLoader)


@dataclass(frozen=True)
class Version:
    """A row of the table, where each key is explained."""

    max_action_timeout: str
    max_upload_timeout: str
    redis_backend: bool
    fallback_match_interval: bool
    read_batching: bool
    compression: bool
    tcp_nodelay: bool
    counts: bool
    undeclared_properties: bool
    object_stores: dict[str, list[str]]


VERSIONS = {name: Version(**found) for name, found in _DATA["versions"].items()}
"""The rows, the newest first."""
NEWEST = next(iter(VERSIONS))


class UnknownVersionError(QuantityError):
    """A version whose configuration is unknown."""


def row(version: str) -> Version:
    """The row of a version: that of the newest one for a newer one, and that of v1.6.6 for v1.6.6-ours."""
    same = (name for name in VERSIONS if _number(name) == _number(version))
    if (name := next(same, NEWEST if is_newer(version) else "")) == "":
        raise UnknownVersionError(f"{version} is not known")
    return VERSIONS[name]


def is_newer(version: str) -> bool:
    """Return whether a version is newer than all that have a row."""
    return _number(version) > _number(NEWEST)


def faults(version: str, *, refused: bool) -> list[str]:
    """What is known to be wrong with a version, with the number of upstream's issue."""
    number = _number(version)
    return [
        f"{each['text']} ({each['issue']})"
        for each in _DATA["faults"]
        if each.get("refused", False) == refused
        and ("before" not in each or number < _number(each["before"]))
        and ("from" not in each or number >= _number(each["from"]))
    ]


def _number(version: str) -> tuple[int, ...]:
    """A version as a number, without what stands behind it. Text that is none comes before all numbers."""
    try:
        return version_key(version)[0]
    except ValueError:
        return ()

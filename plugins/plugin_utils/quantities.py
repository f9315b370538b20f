"""Converts sizes, CPU amounts, durations and versions, as users write them in an inventory, to numbers."""

import ipaddress
import math
import re
from datetime import datetime
from fractions import Fraction
from typing import NamedTuple, Self

Text = str | int | float

# ASCII digits only, and so few that no number is too long for Python or Kubernetes.
_NUMBER = r"([0-9]{1,19}(?:\.[0-9]{1,9})?|\.[0-9]{1,9})"
SIZE = re.compile(rf"{_NUMBER}(Ki|Mi|Gi|Ti|Pi|Ei|k|M|G|T|P|E|[eE][0-9]{{1,2}})?")
CPU = re.compile(rf"{_NUMBER}(m)?")
PERCENT = re.compile(rf"{_NUMBER}%")
# Together less than a hundred years, which Go, and so Kubernetes, can count.
DURATION = re.compile(r"(?:([0-9]{1,4})d)?(?:([0-9]{1,5})h)?(?:([0-9]{1,7})m)?(?:([0-9]{1,9})s)?")
DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_VERSION = re.compile(r"v?([0-9]{1,9})\.([0-9]{1,9})")
_SECONDS = (86400, 3600, 60, 1)
_BINARY = {unit: 1024**power for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), start=1)}
_DECIMAL = {unit: 1000**power for power, unit in enumerate(("k", "M", "G", "T", "P", "E"), start=1)}


class QuantityError(ValueError):
    """A quantity that does not parse. The message states the problem."""


class KubernetesVersion(NamedTuple):
    """A minor version of Kubernetes."""

    major: int
    minor: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """The version in a text such as `1.31` or `v1.31.4+k3s1`. Raises QuantityError if it has none."""
        found = _VERSION.match(text)
        if not found:
            raise QuantityError(f"{text!r} is not a version of Kubernetes")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        """Return it as people write it: 1.31."""
        return f"{self.major}.{self.minor}"


def bytes_of(size: Text) -> int:
    """Bytes of a Kubernetes quantity such as `200Gi`, `1.5T`, `1e9` or a number, rounded up to whole bytes."""
    number, unit = _match(SIZE, size, "is not a valid size")
    if unit and unit[0] in "eE" and len(unit) > 1 and unit[1:].isdigit():
        factor = 10 ** int(unit[1:])
    else:
        factor = {**_BINARY, **_DECIMAL}.get(unit or "", 1)
    if (amount := math.ceil(Fraction(number) * factor)) >= 2**63:
        raise QuantityError(f"{size!r} is more than Kubernetes can count")
    return amount


def cpu_of(cpu: Text) -> int:
    """Thousandths of a CPU of a Kubernetes quantity such as `500m`, `4` or `0.5`."""
    number, milli = _match(CPU, cpu, "is not a valid amount of CPU")
    thousandths = Fraction(number) * (1 if milli else 1000)
    if thousandths.denominator != 1:
        raise QuantityError(f"{cpu!r} is more precise than 1m, a thousandth of a CPU")
    return int(thousandths)


def seconds_of(duration: Text) -> int:
    """Seconds of a duration such as `20m`, `1h30m` or a plain number of seconds."""
    text = _text(duration)
    found = DURATION.fullmatch(f"{text}s" if text.isdigit() else text)
    if not text or not found:
        raise QuantityError(f"{duration!r} is not a valid duration")
    return sum(int(count or 0) * unit for count, unit in zip(found.groups(), _SECONDS, strict=True))


def midnight_of(day: str) -> int:
    """Seconds from 1970 to the beginning of a day such as `2027-01-31`, in UTC; 0 if there is no such day."""
    try:
        return int(datetime.fromisoformat(f"{day}T00Z").timestamp()) if DAY.fullmatch(day) else 0
    except ValueError:
        return 0


def duration_text(seconds: int) -> str:
    """A duration such as `1h15m`; the inverse of `seconds_of`."""
    parts = []
    for unit, length in zip("dhms", _SECONDS, strict=True):
        count, seconds = divmod(seconds, length)
        parts += [f"{count}{unit}"] if count else []
    return "".join(parts) or "0s"


def part_of(share: Text, whole: int) -> int:
    """Bytes of a share of `whole` bytes, which is a percentage such as `80%` (rounded down) or a size."""
    if found := PERCENT.fullmatch(_text(share)):
        return int(Fraction(found[1]) * whole / 100)
    try:
        return bytes_of(share)
    except QuantityError:
        raise QuantityError(f"{share!r} is neither a percentage nor a size") from None


def network_of(host: str) -> str:
    """The network that is one IP address, such as `10.0.0.1/32`, and "" for the name of a host."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return ""
    return f"{address}/{address.max_prefixlen}"


def size_text(size: int) -> str:
    """`size` bytes as a message shows them, in the largest binary unit that gives at least 1, such as `512Mi`."""
    for unit, factor in reversed(_BINARY.items()):
        if size >= factor:
            return f"{size / factor:.1f}".removesuffix(".0") + unit
    return str(size)


def _match(pattern: re.Pattern[str], value: Text, problem: str) -> tuple[str, str | None]:
    found = pattern.fullmatch(_text(value))
    if not found:
        raise QuantityError(f"{value!r} {problem}")
    return found[1], found[2]


def _text(value: Text) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise QuantityError(f"{value!r} is not a quantity")
    return str(value)

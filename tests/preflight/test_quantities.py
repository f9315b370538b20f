import re
from collections.abc import Callable

import pytest
from ansible_collections.nativelink.gitops.plugins.plugin_utils.quantities import (
    KubernetesVersion,
    QuantityError,
    bytes_of,
    cpu_of,
    duration_text,
    part_of,
    seconds_of,
    size_text,
)
from hypothesis import given
from hypothesis import strategies as st

version_of = KubernetesVersion.parse


def part_of_a_thousand(share: str | int) -> int:
    return part_of(share, 1000)


READ: dict[Callable[..., object], dict[str | int | float, object]] = {
    bytes_of: {
        **{"200Gi": 214748364800, "1.5Ki": 1536, "1k": 1000, "2M": 2000000, "1e9": 1000000000, "1E3": 1000},
        **{"1E": 10**18, 42: 42, 0.5: 1, "0.3": 1, ".5Gi": 536870912},
    },
    cpu_of: {"500m": 500, 4: 4000, "0.25": 250, 0.1: 100, "1.5": 1500},
    seconds_of: {"20m": 1200, 30: 30, "45": 45, "1h30m": 5400, "90s": 90, "1d": 86400, "1d2h3m4s": 93784},
    part_of_a_thousand: {"80%": 800, "12.5%": 125, "500": 500, "0.1%": 1, 300: 300},
    version_of: {"1.31": (1, 31), "v1.36.4": (1, 36), "v1.9.3+k3s1": (1, 9), "2.0": (2, 0)},
    duration_text: {4500: "1h15m", 90: "1m30s", 60: "1m", 0: "0s", 93784: "1d2h3m4s"},
    size_text: {214748364800: "200Gi", 536870912: "512Mi", 1: "1", 1610612736: "1.5Gi"},
}
REFUSED: dict[Callable[..., object], list[object]] = {
    bytes_of: ["", "Gi", "1 Gi", "-1Gi", "1GB", "1gi", "1e", "1e100", "500m", "1Gi\n", True, None],
    cpu_of: ["", "m", "-1", "1Gi", "0.5m", "0.0001", "1\n"],
    seconds_of: ["", "m", "1.5h", "-5", "5 m", "30m1h", "1w", "1h\n", 1.5],
    version_of: ["", "latest", "1", "v1"],
}


@pytest.mark.parametrize(
    ("read", "value", "expected"), [(read, *row) for read, rows in READ.items() for row in rows.items()]
)
def test_a_value_is_read(read: Callable[..., object], value: object, expected: object) -> None:
    assert read(value) == expected


@pytest.mark.parametrize(("read", "value"), [(read, value) for read, values in REFUSED.items() for value in values])
def test_a_value_is_refused(read: Callable[..., object], value: object) -> None:
    with pytest.raises(QuantityError, match=f"^{re.escape(repr(value))} is "):
        read(value)


@given(st.integers(0, 10**7))
def test_a_duration_reads_as_it_was_written(seconds: int) -> None:
    assert seconds_of(duration_text(seconds)) == seconds


@given(st.integers(0, 100), st.integers(0, 2**60))
def test_a_percentage_is_that_part(percent: int, hundredth: int) -> None:
    assert part_of(f"{percent}%", 100 * hundredth) == percent * hundredth


@given(st.text(max_size=12))
def test_any_text_is_a_quantity_or_refused_as_one(text: str) -> None:
    for parse in (bytes_of, cpu_of, seconds_of, part_of_a_thousand):
        try:
            assert parse(text) >= 0
        except QuantityError:
            continue

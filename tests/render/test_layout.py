"""Tests of the layout of the CAS: which keys each pod has, and which keys move with another number of pods."""

from itertools import pairwise
from runpy import run_path

import pytest
from ansible_collections.nativelink.gitops.plugins.plugin_utils.grow import PROGRAM
from ansible_collections.nativelink.gitops.plugins.plugin_utils.layout import layout, merged, moved, owner, parsed
from hypothesis import given
from hypothesis import strategies as st

from testkit.trees import committed

PLAIN = [(0, 1), (1, 1), (2, 1)]
KEYS = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("began", [0, 3, 4])
def test_a_cluster_begins_with_the_plain_list(began: int) -> None:
    assert layout(3, began) == PLAIN


def test_a_further_pod_takes_a_quarter_of_each_of_three() -> None:
    quarter = 1_073_741_823
    twelfth = 357_913_942
    assert layout(4, 3) == [(0, quarter), (3, 2 * twelfth), (1, quarter), (2, quarter), (3, twelfth)]
    assert [pod for pod, _ in layout(5, 3)] == [0, 4, 3, 1, 4, 2, 3]


def test_a_plain_list_moves_half_of_the_keys() -> None:
    assert moved(layout(3), layout(4)) == pytest.approx(1 / 2)
    assert moved(layout(3, 3), layout(4, 3)) == pytest.approx(1 / 4)
    assert moved(layout(3, 3), layout(5, 3)) == pytest.approx(2 / 5)
    assert moved(layout(5, 3), layout(3, 3)) == pytest.approx(2 / 5)
    assert moved(PLAIN, [(0, 7), (1, 7), (2, 7)]) == 0


@given(st.integers(1, 5), st.integers(0, 9), KEYS)
def test_only_the_part_of_the_new_pod_moves(began: int, more: int, key: int) -> None:
    pods = began + more
    before, after = layout(pods, began), layout(pods + 1, began)
    assert owner(after, key) in (owner(before, key), pods)
    assert moved(before, after) == pytest.approx(1 / (pods + 1), abs=1e-6)


@given(st.integers(1, 5), st.integers(1, 9))
def test_all_pods_have_the_same_share(began: int, more: int) -> None:
    ranges = layout(began + more, began)
    shares = [sum(weight for pod, weight in ranges if pod == each) for each in range(began + more)]
    assert max(shares) - min(shares) < began + more
    assert sum(shares) == 2**32 - 1  # so that NativeLink does not round
    assert all(0 < weight < 2**32 for _, weight in ranges)
    assert all(one[0] != next_one[0] for one, next_one in pairwise(ranges))


def test_ten_pods_have_a_few_dozen_entries() -> None:
    assert len(layout(10, 3)) == 37


@pytest.mark.parametrize(
    ("key", "pod"), [(0, 0), (1_431_655_765, 0), (1_431_655_766, 1), (2_863_311_531, 2), (2**32 - 1, 2)]
)
def test_the_owner_of_a_key(key: int, pod: int) -> None:
    assert owner(PLAIN, key) == pod


def test_the_entries_of_a_change_have_both_pods() -> None:
    third, quarter = 1_431_655_765, 1_073_741_823
    assert merged(PLAIN, PLAIN) == [(0, 0, 1), (1, 1, 1), (2, 2, 1)]
    assert merged(layout(3, 3), layout(4, 3))[:3] == [(0, 0, quarter), (0, 3, third - quarter), (1, 3, third - quarter)]


@pytest.mark.parametrize(
    ("hash_", "size", "key"),
    [
        # Eight little-endian words of the hash, and the two of the size.
        ("01000000" + 56 * "0", 0, 1),
        ("00000001" + 56 * "0", 0, 2**24),
        (56 * "0" + "ff000000", 1, 254),
        ("ff000000ff000000" + 48 * "0", 2**32 + 5, 4),
    ],
)
def test_the_copier_finds_the_key_that_nativelink_finds(hash_: str, size: int, key: int) -> None:
    assert run_path(str(PROGRAM))["key"]((hash_, size)) == key


def test_the_layout_of_a_tree_is_read_from_it() -> None:
    assert parsed(committed("prod")["cas/cas.json5"]) == PLAIN
    assert parsed("") == []

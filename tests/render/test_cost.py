"""The arithmetic of the documentation is run as it stands there."""

from __future__ import annotations

import doctest

import pytest

from testkit.trees import ROOT


@pytest.mark.parametrize(("page", "least"), [("cost.md", 10), ("sizing.md", 15)])
def test_the_arithmetic_of_a_page(page: str, least: int) -> None:
    done = doctest.testfile(str(ROOT / "docs" / page), module_relative=False)
    assert done.attempted > least
    assert done.failed == 0

"""The arithmetic of docs/cost.md is run as it stands there."""

from __future__ import annotations

import doctest

from tests.render.conftest import ROOT


def test_the_arithmetic_of_the_cost_page() -> None:
    done = doctest.testfile(str(ROOT / "docs/cost.md"), module_relative=False)
    assert done.attempted > 10
    assert done.failed == 0

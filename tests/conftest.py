from __future__ import annotations

import pytest

# The files of minutes, by name without "test_"; where several run at a time, the last one would else run alone.
LONGEST = (
    *("provision", "bootstrap", "interrupted", "scripts"),
    # On a real node, from twelve minutes down to two. Demand, scaling and drain wait more than they compute.
    *("argocd", "demand", "scaling", "flux", "edge", "drain", "switching", "provisioning", "real_node", "build"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first."""

    def rank(item: pytest.Item) -> int:
        name = item.path.stem.removeprefix("test_")
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=rank)

from __future__ import annotations

import pytest

# The files of minutes, by name without "test_"; where several run at a time, the last one would else run alone.
LONGEST = (
    *("provision", "bootstrap", "scripts", "release_manifest", "interrupted", "cluster", "testbed_cluster", "standin"),
    # On a real node, from ten minutes down to two. Demand, scaling and drain wait more than they compute.
    *("argocd", "demand", "edge", "drain", "scaling", "flux", "switching", "provisioning", "real_node", "build"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first."""

    def rank(item: pytest.Item) -> int:
        name = item.path.stem.removeprefix("test_")
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=rank)

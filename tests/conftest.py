from __future__ import annotations

import os

import pytest

# The files that take minutes, without "test_". They start first, so that none runs alone at the end of a parallel run.
LONGEST = (
    *("provision", "bootstrap", "site", "scripts", "guard", "worker_certificates", "release_manifest", "interrupted"),
    "cluster",
    *("testbed_cluster", "standin", "conformance", "parity"),
    # These run on a real node, and take from ten minutes down to two. Demand, scaling and drain mostly wait.
    *("monitoring", "helm", "argocd", "demand", "edge", "drain", "scaling", "flux", "isolation"),
    *("upgrade", "switching", "provisioning", "runbooks", "real_node", "build"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests so that the longest files run first."""

    def rank(item: pytest.Item) -> int:
        name = item.path.stem.removeprefix("test_")
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=rank)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Say at once why a test failed, for runs that are ended before their summary."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\n{report.nodeid}\n{report.longreprtext}")

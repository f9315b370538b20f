from __future__ import annotations

import itertools
import os
import re
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

# What takes minutes: files without "test_", and in tests/e2e the clusters. They start first, so that none runs alone
# at the end of a parallel run.
LONGEST = (
    *("provision", "bootstrap", "site", "scripts", "guard", "worker_certificates", "release_manifest", "interrupted"),
    "cluster",
    *("testbed_cluster", "standin", "conformance", "parity"),
    *(f"tests/e2e/{name}" for name in ("engines flux", "monitoring", "engines argocd", "edge")),
    *(f"tests/e2e/{name}" for name in ("scaling", "workers", "nodes")),
)
# The files that do not run in the order of the alphabet on the cluster that they share with others.
FIRST = ("engines", "flux", "argocd", "switching", "provisioning", "scaling")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rounds", type=int, default=3, metavar="N", help="runs of each measurement (default: 3)")


@pytest.fixture(scope="session")
def rounds(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--rounds"))


def scope(nodeid: str) -> str:
    """Return what shares a cluster with a test: its folder in tests/e2e with its GitOps engine, elsewhere its file."""
    path, _, test = nodeid.partition("::")
    if not path.startswith("tests/e2e/"):
        return path
    engine = re.search(r"[\[-](flux|argocd)[]-]", test)
    return path.rpartition("/")[0] + (f" {engine[1]}" if engine else "")


class ByCluster(LoadScopeScheduling):
    """Gives all tests of a cluster to one worker. Groups of xdist do not work with the test IDs of pytest 9.2."""

    def _split_scope(self, nodeid: str) -> str:
        return scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByCluster:
    return ByCluster(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests so that the longest run first, and those of a cluster one after another."""

    def rank(names: tuple[str, ...], name: str) -> int:
        return names.index(name) if name in names else len(names)

    def key(item: pytest.Item) -> tuple[int, str, int]:
        where, file = scope(item.nodeid), item.path.stem.removeprefix("test_")
        group = where if where.startswith("tests/e2e") else file
        return rank(LONGEST, group), where, rank(FIRST, file)

    items.sort(key=key)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Say at once why a test failed, for runs that are ended before their summary."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\n{report.nodeid}\n{report.longreprtext}")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what took longest. No parallel run is faster than the slowest of them."""
    seconds: dict[str, float] = {}
    for report in itertools.chain(*terminalreporter.stats.values()):
        if isinstance(report, pytest.TestReport):
            name = scope(report.nodeid)
            seconds[name] = seconds.get(name, 0) + report.duration
    for name in sorted(seconds, key=lambda name: -seconds[name])[:10]:
        terminalreporter.write_line(f"{seconds[name]:6.0f} s  {name}")

import contextlib
import itertools
import os
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

from testbed import cluster
from testbed.cluster import Cluster

# What takes minutes: files without "test_", and in tests/e2e the clusters. They start first, so that none runs alone
# at the end of a parallel run.
LONGEST = (
    *("trees", "provision", "roles", "bootstrap", "site", "worker_certificates", "scripts", "guard"),
    *("tests/bootstrap/test_bootstrap.py newest", "testbed_cluster", "standin", "conformance", "parity"),
    *(f"tests/e2e/{name}" for name in ("engines flux", "edge", "engines argocd", "scaling")),
    *(f"tests/e2e/{name}" for name in ("monitoring", "nodes", "workers")),
)
# Files that share a cluster. What one of them makes there has namespaces of its own.
GROUPS = {
    "trees": ("render/test_cluster", "render/test_kubernetes", "chart/test_changes", "preflight/test_live"),
    "roles": (
        "provision/test_node_agent",
        "provision/test_release_manifest",
        "provision/test_grow",
        "provision/test_verify",
        "provision/test_status",
    ),
}
# The files that do not run in the order of the alphabet on the cluster that they share with others.
FIRST = ("engines", "flux", "argocd", "switching", "testbed", "provisioning", "scaling")
FIRST += ("cluster", "kubernetes", "changes", "node_agent")
RUNNING = contextlib.ExitStack()

# No test of drawn examples asks how long they take, which depends on what else the machine does.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rounds", type=int, default=3, metavar="N", help="runs of each measurement (default: 3)")


@pytest.fixture(scope="session")
def rounds(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--rounds"))


@pytest.fixture(scope="session")
def clusters() -> Callable[[str], Cluster]:
    """Return a function that starts the cluster of a group, once in a process."""

    @cache
    def started(group: str) -> Cluster:
        return RUNNING.enter_context(cluster.fresh(f"{group}-{os.environ.get('PYTEST_XDIST_WORKER', 'tests')}"))

    return started


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Stop the cluster of a group after its last test."""
    if nextitem is None or scope(nextitem.nodeid) != scope(item.nodeid):
        RUNNING.close()


@pytest.fixture(scope="session")
def shared(clusters: Callable[[str], Cluster]) -> Cluster:
    return clusters("trees")


def scope(nodeid: str) -> str:
    """Return what shares a cluster with a test: in tests/e2e its folder with its GitOps engine, elsewhere its file.

    Files of a group have its name. The newest ansible-core has a cluster of its own.
    """
    path, _, test = nodeid.partition("::")
    if not path.startswith("tests/e2e/"):
        file = path.removeprefix("tests/").removesuffix(".py")
        newest = " newest" if test.endswith("[newest]") else ""
        return next((group for group, files in GROUPS.items() if file in files), path) + newest
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
        group = file if where.endswith(".py") else where
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

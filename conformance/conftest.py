"""A run of pytest that ``__main__`` starts in namespaces: what all checks use, and the table of their results.

A row has the first line of the check's docstring, in which ``{name}`` is a parameter of the check.
"""

import inspect
import json
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.nativelink.gitops.plugins.plugin_utils.versions import row

from conformance import namespaces
from conformance.farm import KINDS, Farm, Tell
from conformance.pods import MACHINE, Network, nativelink, redis
from conformance.workloads import STORE_CA
from testkit.bazel import Bazel
from testkit.bucket import Bucket
from testkit.subject import Subject

_WIDEST = 400  # characters of what a check saw
_OUTCOMES = {"passed": "ok", "failed": "FAILED", "skipped": "not run"}
_counted: Counter[str] = Counter()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare what ``__main__`` states."""
    parser.addoption("--nativelink", type=lambda text: Subject(**json.loads(text)))
    parser.addoption("--missing", type=json.loads)
    parser.addoption("--inventories", type=int)
    parser.addoption("--clusters", type=Path)
    parser.addoption("--only")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a run outside of namespaces, which would change the machine's network and mounts."""
    if not config.getoption("nativelink"):
        raise pytest.UsageError("run python -m conformance FILE, which makes the namespaces that the checks need")


@pytest.fixture(scope="session")
def under_test(pytestconfig: pytest.Config) -> Subject:
    """Return the NativeLink under test."""
    return pytestconfig.getoption("nativelink")


@pytest.fixture(scope="session")
def missing(pytestconfig: pytest.Config) -> dict[str, str]:
    """Return why a program is not there, by its name."""
    return pytestconfig.getoption("missing")


@pytest.fixture(scope="session")
def network(under_test: Subject, missing: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Network:
    """Return the network of all pods, which have NativeLink and Redis."""
    stack = {} if "redis" in missing else redis(tmp_path_factory.mktemp("redis"))
    return Network(tmp_path_factory.mktemp("pods"), nativelink(under_test) | stack)


@pytest.fixture(scope="session")
def new_farm(
    under_test: Subject, missing: dict[str, str], network: Network, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Farm]:
    """Return ``Farm``, which takes the variables. It skips the checks if there can be no such farm."""

    def made(**variables: Any) -> Farm:
        if variables.get("nativelink_scheduler_backend") == "redis":
            if not row(under_test.version).redis_backend:
                pytest.skip(f"the validation refuses the Redis backend for {under_test.version}")
            if "redis" in missing:
                pytest.skip(f"no Redis: {missing['redis']}")
        if variables.get("nativelink_worker_isolation") and not namespaces.has_users():
            pytest.skip(namespaces.WITHOUT_USERS)
        return Farm(under_test.version, network, tmp_path_factory.mktemp("farm"), variables)

    return made


@pytest.fixture(scope="session")
def bucket(missing: dict[str, str], network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """Yield a bucket, which pods reach. It is for a farm that has it."""
    if "bucket" in missing:
        pytest.skip(f"no bucket: {missing['bucket']}")
    made = Bucket(tmp_path_factory.mktemp("bucket"), STORE_CA, str(MACHINE))
    yield made
    made.stop()


@pytest.fixture(scope="session")
def farm(request: pytest.FixtureRequest, new_farm: Callable[..., Farm]) -> Iterator[Farm]:
    """Yield the farm of a kind, which all of its checks share. The next one starts when it has ended."""
    shared = request.getfixturevalue("bucket").variables if request.param.bucket else {}
    made = new_farm(**shared, **request.param.variables)
    made.change = request.param.change
    with made:
        yield made


@pytest.fixture(scope="session")
def client(missing: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bazel]:
    """Yield a Bazel, whose server ends afterwards."""
    if "bazel" in missing:
        pytest.skip(f"no Bazel: {missing['bazel']}")
    with Bazel.started(tmp_path_factory.mktemp("bazel")) as made:
        yield made


@pytest.fixture
def bazel(client: Bazel, farm: Farm) -> Bazel:
    """Return a Bazel that uses the farm."""
    return client.at(farm.api)


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Tell:
    """Return a function that takes what a check saw, for its row."""
    return partial(record_property, "seen")


def _names(item: pytest.Function) -> tuple[str, str]:
    """Return a check's tree, or kind of farm, and the check's own name."""
    parameters: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
    told = (inspect.getdoc(item.function) or item.name).partition("\n")[0].format(**parameters)
    return str(parameters.get("farm") or parameters.get("tree") or "farm of its own"), told


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Function]) -> Generator[None]:
    """Leave out what ``--only`` does not select, and sort by kinds of farms, so that each starts once."""
    kinds = list(map(str, KINDS.values()))
    selected = [item for item in items if config.getoption("only") in "\n".join(_names(item))]
    selected.sort(key=lambda item: kinds.index(where) if (where := _names(item)[0]) in kinds else -1)
    yield  # pytest would sort them, too, but not keep the order of a kind's checks
    items[:] = selected


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Say why checks could not be collected: usually because a tree could not be rendered."""
    if report.failed:
        print(report.longreprtext, file=sys.stderr)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Print a row for each check, and one for each start or end of a farm that failed."""
    report = yield
    if report.when == "call" or not report.passed:
        seen: object = dict(item.user_properties).get("seen", "")
        if call.excinfo:
            seen = call.excinfo.value if report.skipped else call.excinfo.exconly()
        detail = " ".join(str(seen).split())
        where, told = _names(item)
        outcome = _OUTCOMES[report.outcome]
        row = f"{item.config.getoption('nativelink').title:9} {where:16} {told:58} {outcome:8} {detail[:_WIDEST]}"
        print(row.rstrip() + " …" * (len(detail) > _WIDEST), flush=True)
        _counted[outcome] += 1
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Print the number of rows of each outcome."""
    numbers = (f"{_counted[outcome]} {outcome}" for outcome in _OUTCOMES.values())
    print(f"\n{session.config.getoption('nativelink').title}: {', '.join(numbers)}", flush=True)

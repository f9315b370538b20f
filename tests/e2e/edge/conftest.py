from collections.abc import Iterator
from pathlib import Path

import pytest

from testkit.bazel import Bazel
from testkit.edge import Edge, opened
from testkit.site import pool

RESOURCES = {**pool("default")["resources"], "limits": {"cpu": "2", "memory": "256Mi"}}
POOLS = [pool("default", slots=4, longest_action="4m", resources=RESOURCES), pool("large")]  # those of examples/bazel


@pytest.fixture(scope="package")
def bazel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bazel]:
    with Bazel.started(tmp_path_factory.mktemp("bazel")) as made:
        yield made


@pytest.fixture(scope="package")
def edge(state: Path, bazel: Bazel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """Bootstrap a cluster with an edge, through which Bazel builds, and apply the rendered tree."""
    with opened("e2e-edge", tmp_path_factory.mktemp("edge"), nativelink_worker_pools=POOLS) as made, made.bazel(bazel):
        yield made

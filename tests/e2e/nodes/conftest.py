from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import cluster


@pytest.fixture(scope="package")
def real(state: Path) -> Iterator[cluster.Cluster]:
    with cluster.fresh("e2e-nodes", nodes=0, real=True) as made:
        yield made

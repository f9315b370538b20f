from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import cluster, node


@pytest.fixture(scope="session", autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give these tests their own state folder, and remove the clusters that are left in it."""
    if missing := node.missing():
        pytest.fail(f"a real node needs {', '.join(missing)}: run this as root, on Debian or Ubuntu", pytrace=False)
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("state")
        patch.setenv("TESTBED_STATE", str(folder))
        yield folder
        for left in cluster.clusters():
            cluster.down(left.name)

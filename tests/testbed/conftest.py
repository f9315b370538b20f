from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import build, cache, cluster

MY_KUBECONFIG = "apiVersion: v1\nkind: Config\ncurrent-context: mine\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a user's home with a kubeconfig in it. The state folder of the clusters is empty."""
    build.programs("cluster")  # before HOME changes, because Go's own cache is in it
    folder = tmp_path_factory.mktemp("home")
    (folder / ".kube").mkdir()
    (folder / ".kube" / "config").write_text(MY_KUBECONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache.root().parent))
        patch.setenv("HOME", str(folder))
        patch.setenv("KUBECONFIG", str(folder / ".kube" / "config"))
        patch.setenv("TESTBED_STATE", str(tmp_path_factory.mktemp("state")))
        yield folder
        for left in cluster.clusters():
            cluster.down(left.name)


@pytest.fixture(scope="module")
def one(home: Path) -> cluster.Cluster:
    return cluster.up("one")

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from testbed import build, cache, cluster
from testbed.cluster import Cluster, ClusterError
from testkit.trees import ROOT

ALL = {"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok"}
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
def one(home: Path) -> Cluster:
    return cluster.up("one")


def test_the_cluster_is_as_described(one: Cluster, home: Path) -> None:
    before = one.processes()
    assert set(before) == ALL
    assert cluster.up("one") == one, "a cluster that runs is used again"
    assert one.processes() == before
    assert yaml.safe_load(one.kubeconfig.read_text())["current-context"] == one.context == "testbed-one"
    assert one.kubeconfig.stat().st_mode & 0o077 == 0, "the kubeconfig has a private key in it"
    # The user's home is as it was.
    assert [path.name for path in (home / ".kube").iterdir()] == ["config"]
    assert (home / ".kube" / "config").read_text() == MY_KUBECONFIG
    assert not (home / ".kwok").exists()


def test_two_clusters_run_side_by_side_and_down_leaves_nothing(one: Cluster) -> None:
    two = cluster.up("two", nodes=1)
    assert two.endpoint != one.endpoint
    assert two.run("get", "nodes", "-o", "name") == "node/node-1\n"
    two.run("create", "namespace", "only-in-two")
    with pytest.raises(ClusterError, match="only-in-two"):
        one.run("get", "namespace", "only-in-two")
    processes = two.processes()
    assert set(processes) == ALL
    cluster.down("two")
    assert [pid for pid in processes.values() if Path(f"/proc/{pid}/exe").exists()] == []
    assert not two.home.exists()
    assert [found.name for found in cluster.clusters()] == ["one"]
    assert one.ready()
    cluster.down("two")  # a second call does nothing


def test_tests_that_need_a_real_node_fail_without_root() -> None:
    command = ["unshare", "--user", sys.executable, "-m", "pytest", "-m", "alone", "tests/e2e"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout
    assert "a real node needs root" in done.stdout

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from testbed import build, cluster, pins
from testbed.cluster import Cluster, ClusterError
from testbed.waiting import patient, until
from testkit.trees import ROOT
from tests.testbed.conftest import MY_KUBECONFIG

ALL = {"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok"}


def deployment(namespace: str) -> dict:
    pod = {"metadata": {"labels": {"app": "app"}}, "spec": {"containers": [{"name": "main", "image": "none"}]}}
    spec = {"selector": {"matchLabels": {"app": "app"}}, "template": pod}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "app", "namespace": namespace},
        "spec": spec,
    }


def gets_ready(where: Cluster, namespace: str, seconds: int) -> None:
    where.run("-n", namespace, "wait", "--for=condition=Available", "deployment/app", f"--timeout={patient(seconds)}s")


def test_the_cluster_is_as_described(one: Cluster, home: Path) -> None:
    before = one.processes()
    assert set(before) == ALL
    assert cluster.up("one") == one, "a cluster that runs is used again"
    assert one.processes() == before
    assert yaml.safe_load(one.kubeconfig.read_text())["current-context"] == one.context == "testbed-one"
    assert one.kubeconfig.stat().st_mode & 0o077 == 0, "the kubeconfig has a private key in it"
    version = json.loads(one.run("version", "-o", "json"))
    assert {version[side]["gitVersion"] for side in ("serverVersion", "clientVersion")} == {
        pins.versions()["kubernetes"]
    }
    nodes = json.loads(one.run("get", "nodes", "-o", "json"))["items"]
    zones = [node["metadata"]["labels"]["topology.kubernetes.io/zone"] for node in nodes]
    assert sorted(zones) == ["zone-a", "zone-a", "zone-b", "zone-b", "zone-c", "zone-c"]
    wanted = {"cpu": "64", "memory": "256Gi", "ephemeral-storage": "1Ti", "pods": "250"}
    assert all(node["status"]["allocatable"] == wanted for node in nodes)
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


def test_a_crashed_component_is_started_again(home: Path) -> None:
    crashed = cluster.up("crashed", nodes=1)
    before = crashed.processes()
    os.kill(before["etcd"], signal.SIGKILL)
    assert not crashed.ready()
    again = cluster.up("crashed", nodes=1)
    assert again.ready()
    assert set(again.processes().values()).isdisjoint(before.values())
    cluster.down("crashed")


def test_never_ready_can_be_switched_on_and_off(one: Cluster) -> None:
    one.never_ready("slow")
    for namespace in ("slow", "quick"):
        one.run("create", "namespace", namespace)
        one.apply(deployment(namespace))
    gets_ready(one, "quick", 20)
    with pytest.raises(ClusterError, match="timed out"):
        gets_ready(one, "slow", 3)
    one.never_ready("slow", on=False)
    gets_ready(one, "slow", 20)


def test_an_api_server_can_be_paused_and_stopped(one: Cluster) -> None:
    one.run("create", "namespace", "kept")
    one.pause()
    try:
        assert not one.ready()
    finally:
        one.resume()
    assert one.ready()
    one.stop_api()
    with pytest.raises(ClusterError, match="refused"):
        one.run("get", "namespace", "kept")
    one.start_api()
    assert one.run("get", "namespace", "kept", "-o", "name") == "namespace/kept\n"


def test_invalid_names_and_missing_binaries_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="not a valid cluster name"):
        cluster.cluster("../elsewhere")
    (tmp_path / "kubectl").touch(mode=0o755)
    monkeypatch.setenv("TESTBED_BIN", str(tmp_path))
    with pytest.raises(build.BuildError, match="no executable kube-apiserver, kube-controller-manager, kube-scheduler"):
        build.programs("cluster")


def test_patience_multiplies_every_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TESTBED_PATIENCE", raising=False)
    assert patient(0.1) == 0.1
    monkeypatch.setenv("TESTBED_PATIENCE", "5")
    assert patient(0.1) == 0.5
    with pytest.raises(ClusterError, match=r"^timed out after 1 s waiting for nothing$"):
        until("nothing", lambda: False, 0.2)


def test_a_full_disk_is_reported_before_anything_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2_000_000_000))
    with pytest.raises(
        build.BuildError, match=r"nativelink-gitops has 2\.0 GB free, but building etcd may need 6 GB\."
    ):
        build.program("etcd")
    assert [path.name for path in (tmp_path / "nativelink-gitops" / "bin").iterdir() if path.is_dir()] == []


def test_tests_that_need_a_real_node_fail_without_root() -> None:
    command = ["unshare", "--user", sys.executable, "-m", "pytest", "-m", "alone", "tests/e2e"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout
    assert "a real node needs root" in done.stdout

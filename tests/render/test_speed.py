"""Measures rendering: 1 to 1,000 clusters like those of inventories/reference, beside kustomize of the same trees."""

import contextlib
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from testbed import build
from testkit.inventories import write_inventory
from testkit.numbers import machine
from testkit.playbooks import start_playbook

SECONDS_A_CLUSTER, MEBIBYTES = 0.15, 600  # the goals at 1,000 clusters
pytestmark = pytest.mark.bench


@pytest.mark.parametrize("size", [1, 10, 100, 1000])
def test_seconds_of_rendering(size: int, tmp_path: Path) -> None:
    hosts = {f"c{index:04}": variables(index) for index in range(size)}
    shared = {"storage_classes_list": [{"name": "gp3", "preset": "aws-ebs-gp3"}]}
    trees = tmp_path / "clusters"
    inventory = write_inventory(tmp_path / "inventory", hosts, **shared, nativelink_clusters_dir=str(trees))
    first, most = rendered(inventory, tmp_path / "log")
    again, _ = rendered(inventory, tmp_path / "log")
    kubectl, began = build.program("kubectl"), time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for status in pool.map(lambda tree: subprocess.call([kubectl, "kustomize", tree], stdout=-3), trees.iterdir()):
            assert status == 0
    each = [f"{seconds / size:.3f}" for seconds in (first, again, time.monotonic() - began)]
    print(f"\n{machine()}; {size} clusters; goals at 1,000: {SECONDS_A_CLUSTER} s, {MEBIBYTES} MiB")
    print(f"seconds a cluster: render {each[0]}, again {each[1]}, kubectl kustomize {each[2]}; {most:.0f} MiB at most")


def variables(index: int) -> dict[str, Any]:
    """Return the variables of a cluster with two pools. Clusters are like prod and like dev by turns."""
    pools = [{"name": "default", "platform_properties": {"pool": "default"}}, {"name": "large", "longest_action": "1h"}]
    shared = {"nativelink_scheduler_backend": "redis", "nativelink_scheduler_replicas": 2} if index % 2 else {}
    return {
        "cluster_kubeconfig": f"/nowhere/{index}",
        "cluster_context": f"c{index}",
        "nativelink_hostname": f"c{index}.example.com",
        "nativelink_edge_open": "nobody reaches it",
        "nativelink_worker_pools": pools,
        **shared,
    }


def rendered(inventory: Path, log: Path) -> tuple[float, float]:
    """Render an inventory. Return the seconds, and the most MiB that all processes had at once."""
    began, most = time.monotonic(), 0.0
    with start_playbook("render", inventory, log=log) as process:
        while process.poll() is None:
            most = max(most, memory(process.pid))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
    assert process.returncode == 0, log.read_text()[-4000:]
    return time.monotonic() - began, most


def memory(process: int) -> float:
    """Return the MiB of a process and its descendants. Each shared page is divided among its users (PSS)."""
    folder = Path(f"/proc/{process}")
    try:
        lines = (folder / "smaps_rollup").read_text().splitlines()
        children = (folder / f"task/{process}/children").read_text().split()
    except OSError:  # it has ended
        return 0
    own = sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return own / 1024 + sum(memory(int(child)) for child in children)

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from testbed import node
from testbed.cluster import Cluster
from testbed.waiting import patient
from testkit.client import repeated
from testkit.edge import CAS, Edge, opened
from testkit.farm import VOLUMES, await_keda, install, load_images, this_machine
from testkit.prometheus import Alerts, hurry
from testkit.site import pool

WORKERS = "nativelink-workers"
POOL = pool(
    "default",
    **{"slots": 2, "min_replicas": 1, "max_replicas": 2, "longest_action": "2m"},
    **{"scratch_size": "2Gi", "fast_store_size": "10%"},
)


@dataclass(frozen=True)
class Monitored(Edge, Alerts):
    """A farm with an edge, and its Prometheus."""

    def worker(self) -> str:
        """Return the name of a worker that is ready."""
        pods = ("-n", WORKERS, "get", "pods", "--field-selector=status.phase=Running", "-o", "name")
        return self.where.run(*pods, "-l", "app.kubernetes.io/component=worker").split()[0].removeprefix("pod/")

    def requests(self) -> contextlib.AbstractContextManager[None]:
        """Ask for actions through the edge again and again."""
        few = ("--seconds=0-0", "--retries=0", "--timeout=60", "--concurrency=5", "--actions=5")
        return repeated(self.outside.command(*few, pool="default"))


def mount_disk(where: Cluster, path: str, *options: str) -> None:
    """Mount a disk in memory on a folder of the node."""
    node.run_inside(where.home, "mount", "-t", "tmpfs", "-o", ",".join(("mode=777", *options)), "tmpfs", path)


def prepare(where: Cluster) -> None:
    """Install what the farm finds on a cluster: KEDA, kube-state-metrics, and a disk for the volumes.

    Without its own disk a volume would be as full as the disk of this machine.
    """
    mount_disk(where, VOLUMES, "size=2g")
    load_images(where, "keda", "collector", "prometheus", "kube-state-metrics")
    install(where, "keda", "kube-state-metrics")


@contextlib.contextmanager
def monitored(name: str, folder: Path, **variables: Any) -> Iterator[Monitored]:
    """Bootstrap a farm with an edge, KEDA and all metrics."""
    stated = {
        "keda_install": "existing",
        "nativelink_scaling": "keda",
        "nativelink_worker_pools": [POOL],
        "nativelink_metrics": ["scheduler", "cas", "worker"],
        "nativelink_prometheus": "bundled",
        "nativelink_prometheus_scrapes": ["edge", "keda", "cluster"],
        **variables,
    }
    with opened(name, folder, prepare, **stated) as edge:
        await_keda(edge.where)
        edge.where.apply(this_machine(edge.where, CAS))
        yield Monitored(**vars(edge), url=f"http://{edge.address('nativelink-prometheus')}:9090")


@pytest.fixture(scope="package")
def farm(state: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    """Return a farm whose monitoring takes a tenth of the time that a user's has."""
    folder = tmp_path_factory.mktemp("monitoring")
    with monitored("e2e-monitoring", folder, nativelink_scheduler_worker_timeout=round(patient(5))) as made:
        hurry(made.folder / "rendered")
        made.apply_folder()
        made.ready()
        made.where.rolled_out(CAS, "deployment/nativelink-collector", "deployment/nativelink-prometheus")
        yield made

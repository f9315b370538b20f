"""A run that is killed at any point and started again ends in the same state as an uninterrupted run."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable

import pytest

from testbed.cluster import Cluster
from testkit.inventories import LOCAL_PATH
from testkit.playbooks import Project

from .conftest import objects

# The edge's controller and the node agent are left out to save time. They are installed like KEDA and Argo CD.
VARIABLES = {
    **LOCAL_PATH,
    "ingress_provider": "none",
    "nativelink_edge": "none",
    "node_agent_guard": False,
    "gitops_provider": "argocd",
    "gitops_repository": "https://git.example.com/platform/clusters.git",
}


def exists(where: Cluster, path: str) -> Callable[[], bool]:
    """Return a function that returns True if the API server has the object at a path."""
    command = where.command("get", "--raw", path)
    return lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_killed_at_five_points_it_converges(
    project: Project, embedded: Callable[[str], Cluster], tmp_path_factory: pytest.TempPathFactory
) -> None:
    smooth, bumpy = embedded("smooth"), embedded("bumpy")
    reference = Project(tmp_path_factory.mktemp("smooth"))
    reference.add("alpha", smooth, **VARIABLES)
    assert reference.run().status == 0

    project.add("alpha", bumpy, **VARIABLES)
    rendered = project.trees / "alpha" / "rendered"
    for reached in (
        exists(bumpy, "/api/v1/namespaces/nativelink"),
        exists(bumpy, "/apis/storage.k8s.io/v1/storageclasses/local-path"),
        exists(bumpy, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/scaledobjects.keda.sh"),
        rendered.exists,
        exists(bumpy, "/api/v1/namespaces/argocd"),
    ):
        assert not reached()  # each run gets further than the run before
        assert project.interrupt(reached), project.log.read_text()

    assert project.run().status == 0
    assert project.tree() == reference.tree()
    assert objects(bumpy) == objects(smooth)
    again = project.run()
    assert again.status == 0
    assert again.changed == 0


@pytest.mark.soak
def test_killed_at_random_points_it_converges(
    tmp_path_factory: pytest.TempPathFactory, embedded: Callable[[str], Cluster]
) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    print(f"seed {seed}")

    smooth = embedded("smooth")
    reference = Project(tmp_path_factory.mktemp("smooth"))
    reference.add("alpha", smooth, **VARIABLES)
    started = time.monotonic()
    assert reference.run().status == 0
    took = time.monotonic() - started
    wanted = objects(smooth)

    killed = 0
    while killed < 20:
        bumpy = embedded("bumpy")
        project = Project(tmp_path_factory.mktemp("bumpy"))
        project.add("alpha", bumpy, **VARIABLES)
        moment = chance.uniform(0, took)
        started = time.monotonic()
        if not project.interrupt(lambda end=started + moment: time.monotonic() > end):
            took = time.monotonic() - started  # less than the first run took, because files are now in memory
            continue
        killed += 1
        print(f"{killed}: killed after {moment:.1f} s of {took:.1f} s")
        assert project.run().status == 0
        assert project.tree() == reference.tree()
        assert objects(bumpy) == wanted
        assert project.run().changed == 0

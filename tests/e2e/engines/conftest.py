import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testkit import engines
from testkit.engines import Engine
from testkit.site import pool

KEPT, GONE, AUTO = pool("kept", scaling="none"), pool("gone", scaling="none"), pool("auto", scaling="keda")
# What the clusters have beside their engine: KEDA under Argo CD, and Argo CD for the switch from Flux.
MORE: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "flux": (("argocd", "flux-helm", "verify"), {"nativelink_worker_pools": [KEPT, GONE]}),
    "argocd": (
        ("keda", "collector", "verify"),
        {
            "keda_install": "release",
            "nativelink_scaling": "keda",
            "nativelink_worker_pools": [KEPT, GONE, AUTO],
        },
    ),
}


def replicas(engine: Engine, name: str) -> int:
    """Return how many workers a pool should have."""
    return int(engine.get(f"deployment/nativelink-worker-{name}", engines.WORKERS)["spec"]["replicas"])


def workers(engine: Engine) -> dict[str, Any]:
    """Return the pods of the pool kept by name, without terminating ones."""
    pods = ("get", "pods", "-l", "nativelink-gitops/pool=kept", "-o", "json")
    items = json.loads(engine.where.run("-n", engines.WORKERS, *pods))["items"]
    return {each["metadata"]["name"]: each for each in items if "deletionTimestamp" not in each["metadata"]}


def configuration_of(pod: dict[str, Any]) -> str:
    """Return the name of the ConfigMap that a worker's pod has."""
    (name,) = (each["configMap"]["name"] for each in pod["spec"]["volumes"] if each["name"] == "config")
    return str(name)


@pytest.fixture(scope="package", params=engines.ENGINES)
def engine(state: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Return an engine that has applied its first tree. Tests of one engine ask for it with `flux` or `argocd`."""
    loaded, variables = MORE[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    with engines.engine(request.param, folder, "buildpack-deps", *loaded, **variables) as made:
        yield made


@pytest.fixture(autouse=True)
def applied(engine: Engine) -> None:
    """Wait until the last commit is applied, before each test."""
    if engine.site.hosts[engines.NAME]["gitops_provider"] == engine.kind:
        commit = engine.site.git("rev-parse", "HEAD")
        engine.eventually("the last commit to be applied", lambda: engine.finished(commit) and engine.healthy(), 60)

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from testbed import cluster
from testbed.cluster import Cluster
from testbed.waiting import until
from testkit.farm import FAKE, Farm, await_keda, install, load_images
from testkit.prometheus import Alerts
from testkit.record import Record
from testkit.site import pool

Object = dict[str, Any]
SLOTS = 2
DOWN_AT_ONCE = {"stabilizationWindowSeconds": 0, "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]}
STATIC = {"fallback": {"failureThreshold": 3, "replicas": 2, "behavior": "static"}}
"""The fields of a ScaledObject that loses workers with its source: KEDA's static fallback."""


def follower(name: str, **more: Any) -> Object:
    """Return a pool of fake workers that scales up and down at once: 20 actions need 10 workers."""
    return pool(
        name, slots=SLOTS, **{"min_replicas": 1, "max_replicas": 20, "scale_down": DOWN_AT_ONCE, **FAKE, **more}
    )


@pytest.fixture(scope="package")
def where(state: Path) -> Iterator[Cluster]:
    with cluster.fresh("e2e-scaling", nodes=3, real=True) as made:
        load_images(made, "keda", "collector", "redis", "redis-exporter", "prometheus", "kube-state-metrics")
        install(made, "keda", "kube-state-metrics")
        await_keda(made)
        yield made


@dataclass(frozen=True)
class Watched(Farm, Alerts):
    """A farm, a record of its pools, and its Prometheus."""

    record: Record

    @classmethod
    def of(cls, farm: Farm, record: Record) -> Watched:
        return cls(**vars(farm), record=record, url=f"http://{farm.address('nativelink-prometheus')}:9090")

    def replicas(self, *names: str) -> dict[str, int]:
        return {name: self.record.replicas(f"nativelink-worker-{name}") for name in names}

    def become(self, seconds: float = 60, **wanted: int) -> None:
        """Wait until each of these pools has this many workers."""
        what = f"pools of {self.name} to be {wanted}"
        until(what, lambda: self.replicas(*wanted) == wanted, seconds, lambda: self.explained(*wanted))

    def explained(self, *names: str) -> str:
        """Return the number of workers of these pools, and what all HPAs of the farm say about their metrics."""
        columns = 'custom-columns=HPA:.metadata.name,METRICS:.status.conditions[?(@.type=="ScalingActive")].message'
        return f": they are {self.replicas(*names)}\n{self.run('get', 'hpa', '-o', columns)}"

    def moved(self, name: str, since: float) -> list[int]:
        """Return each number of workers that a pool had since a time."""
        return [replicas for _, replicas in self.record.steps(f"nativelink-worker-{name}", since)]

    def patch(self, name: str, spec: Object) -> None:
        """Change the ScaledObject of a pool."""
        self.run("patch", "scaledobject", f"nativelink-worker-{name}", "--type=merge", "-p", json.dumps({"spec": spec}))

    def fall_back(self, *names: str) -> None:
        """Wait until KEDA reports that it uses the fallback of these pools."""
        path = 'jsonpath={.status.conditions[?(@.type=="Fallback")].status}'

        def fallen() -> list[str]:
            return [self.run("get", "scaledobject", f"nativelink-worker-{name}", "-o", path) for name in names]

        until(f"the fallback of pools {names}", lambda: {*fallen()} == {"True"}, 90)

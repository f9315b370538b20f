"""The number of CAS pods changes on a real node while clients work: no action fails, and what was cached stays.

Only the original answers gRPC over HTTP/1.1, as the Jobs ask.
"""

import json
from pathlib import Path
from typing import Any

from testbed.cluster import Cluster
from testkit.farm import Farm, load_images, repeated
from testkit.inventories import write_inventory
from testkit.nativelink import only_original
from testkit.playbooks import run_playbook
from testkit.site import SMALL, pool

pytestmark = only_original("whether it answers gRPC over HTTP/1.1")

ACTIONS = 60
POOLS = [pool("default", slots=8)]
TWO: dict[str, Any] = {"nativelink_cas_replicas": 2, "nativelink_cas_layout_from": 1}
ONE: dict[str, Any] = {**TWO, "nativelink_cas_shards": 1}
NEXT: dict[str, Any] = {**ONE, "nativelink_cas_shards_next": 2}


def push(farm: Farm, variables: dict[str, Any]) -> None:
    farm.apply(POOLS, **variables)
    farm.ready("deployment/nativelink-worker-default")


def act(farm: Farm, salt: str, actions: int = ACTIONS) -> list[str]:
    """Run actions with an output. Return the nanoseconds that each prints when it runs."""
    command = json.dumps(["/bin/bash", "-c", "date +%s%N; echo {salt} {index} > out"])
    asked = (f"--command={command}", "--output=out", f"--salt={salt}", f"--actions={actions}", "--lookup")
    report = farm.client().report(*asked, pool="default")
    assert report["failed"] == 0, report
    return [each["line"] for each in report["actions"]]


def test_one_cas_pod_becomes_two_while_clients_work(where: Cluster, tmp_path: Path) -> None:
    load_images(where, "copier")
    farm = Farm(where, "grow", tmp_path / "clusters")
    push(farm, ONE)
    before = act(farm, "before")
    with repeated(lambda number: act(farm, f"meanwhile-{number}", 8)) as clients:
        push(farm, NEXT)
        spaces = {"nativelink_namespace": farm.name, "nativelink_workers_namespace": farm.workers}
        host = {"cluster_kubeconfig": str(where.kubeconfig), "cluster_context": where.context, **SMALL, **spaces}
        inventory = write_inventory(tmp_path, {"grow": {**host, "nativelink_worker_pools": POOLS, **NEXT}})
        done = run_playbook("grow", inventory)
        assert done.status == 0, done.output
        push(farm, TWO)
    meanwhile = clients.result()
    assert len(meanwhile) > 3
    assert [act(farm, f"meanwhile-{number}", 8) for number in range(len(meanwhile))] == meanwhile
    assert act(farm, "before") == before
    where.run("delete", "namespace", farm.name, farm.workers, "--wait=false")

"""Attacks of actions on a real node, each beside a counter-run in a pool without isolation.

The tests share one cluster and run in the order of the file. ``conformance/attacks.py`` has the attacks that need no
node, which a real NativeLink runs.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from testbed import build, cluster, components
from testbed.cluster import Cluster
from testbed.waiting import patient, until
from tests.e2e.chain import Entry
from tests.e2e.site import SMALL, Site, pool

POOLS = [pool("isolated", slots=4, max_replicas=1), pool("open", slots=4, max_replicas=1, isolation="none")]
CAS = "nativelink-cas-0.nativelink-cas-headless.farm.svc"
WORKER_API = "nativelink-scheduler-workers.farm.svc"
REFUSED, CONNECTED, CLOSED = "Operation not permitted", "connected", "timed out"


@dataclass(frozen=True)
class Farm:
    """A farm on a node with the agent, and the checkout that describes the cluster."""

    where: Cluster
    site: Site
    entry: Entry

    def run(self, pool: str, script: str, timeout: int = 60) -> str:
        """Run a script as an action of a pool, and return how the action ended and what it printed, in one line."""
        endpoints = [f"--execute-endpoint=grpc://{self.entry.address('nativelink-scheduler')}:50052"]
        endpoints.append(f"--cas-endpoint=grpc://{self.entry.address('nativelink-cas')}:50051")
        command = ["/bin/bash", "-c", script]
        arguments = [f"--command={json.dumps(command)}", f"--platform=pool={pool}", f"--timeout={timeout}"]
        program = build.binaries(build.NODE_SETS)["reapi-load"]
        done = subprocess.run([program, *endpoints, *arguments], capture_output=True, text=True, check=False)
        (action,) = json.loads(done.stdout)["actions"]
        return " ".join([action["outcome"], action["line"], action["errors"]])

    def connect(self, pool: str, host: str, port: int) -> str:
        """Let an action of a pool connect to a port, and return how that ends."""
        script = f"timeout 3 bash -c '< /dev/tcp/{host}/{port} && echo connected'; [ $? != 124 ] || echo timed out"
        return self.run(pool, script)

    def workers(self) -> dict[str, tuple[bool, int]]:
        """Return by pool whether its worker is ready, and how often the worker has restarted."""
        found = {}
        for pod in json.loads(self.where.run("-n", self.entry.workers, "get", "pods", "-o", "json"))["items"]:
            (state,) = pod["status"].get("containerStatuses", [{"ready": False, "restartCount": 0}])
            found[pod["metadata"]["labels"]["nativelink-gitops/pool"]] = (state["ready"], state["restartCount"])
        return found

    def guard(self, *, on: bool) -> None:
        """Let the node agent attach the guard, or remove it."""
        self.site.set("site", node_agent_guard=on)
        self.site.playbook("provision", "--tags", "node_agent")

    def await_worker(self, pool: str) -> None:
        self.where.rolled_out(self.entry.workers, f"deployment/nativelink-worker-{pool}")


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    """Apply a tree to a node without the guard, and wait for all but the isolated worker."""
    with cluster.fresh("e2e-isolation", nodes=0, real=True) as where:
        where.load(*components.images_of("bpftool"))
        site = Site.make(tmp_path_factory.mktemp("site") / "checkout")
        site.add("site", where, **SMALL, nativelink_worker_pools=POOLS)
        made = Farm(where, site, Entry(where, "farm", tmp_path_factory.mktemp("tree")))
        made.entry.apply(POOLS, nativelink_scaling="none", nativelink_worker_access="node")
        where.rolled_out("farm", "statefulset/nativelink-cas", "deployment/nativelink-scheduler")
        made.await_worker("open")
        yield made


def test_a_worker_on_a_node_that_does_not_guard_takes_no_actions_and_says_why(farm: Farm) -> None:
    def said() -> str:
        arguments = ("logs", "-l", "nativelink-gitops/pool=isolated", "-c", "worker", "--tail=5")
        return farm.where.run("-n", farm.entry.workers, *arguments)

    reason = "isolation: the node lets actions connect to port 50053"
    until("the reason", lambda: reason in said(), 60)
    assert "Run role node_agent for it (node_agent_guard)" in said()
    assert not farm.workers()["isolated"][0]


def test_with_the_guard_actions_run_as_users_of_their_own(farm: Farm) -> None:
    farm.guard(on=True)
    farm.await_worker("isolated")
    status = "grep -E '^(Uid|CapEff|CapPrm|CapInh|NoNewPrivs)' /proc/self/status | tr -s '\\t\\n' ' '"
    none = "0000000000000000"
    assert farm.run("isolated", status).startswith(
        f"ok Uid: 20000 20000 20000 20000 CapInh: {none} CapPrm: {none} CapEff: {none} NoNewPrivs: 1"
    )
    assert farm.run("open", status).startswith("ok Uid: 65532 65532 65532 65532")


@pytest.mark.parametrize(("host", "port"), [(CAS, 50053), (WORKER_API, 50061)], ids=["action results", "worker API"])
def test_an_action_reaches_neither_the_port_for_results_nor_the_worker_api(farm: Farm, host: str, port: int) -> None:
    assert REFUSED in farm.connect("isolated", host, port)
    assert CONNECTED in farm.connect("open", host, port)
    # The contents of the CAS are for actions too, because they are verified.
    assert CONNECTED in farm.connect("isolated", CAS, 50052)


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("kubernetes.default.svc", 443),
        ("169.254.169.254", 80),
        ("nativelink-scheduler.farm.svc", 50052),
        (CAS, 50080),
        ("10.200.0.1", 5000),
    ],
    ids=["API server", "metadata", "clients' port of the scheduler", "health of the CAS", "node"],
)
def test_the_policies_close_everything_else(farm: Farm, host: str, port: int) -> None:
    seen = farm.connect("isolated", host, port)
    assert CLOSED in seen or "No route to host" in seen or "Connection refused" in seen or "unreachable" in seen, seen
    assert CONNECTED not in seen


def test_the_first_process_of_the_pod_has_a_user_of_its_own(farm: Farm) -> None:
    """It would end the pod without a drain."""
    for name in ("isolated", "open"):
        assert "Operation not permitted" in farm.run(name, "kill -TERM 1")
    assert farm.workers() == {"isolated": (True, farm.workers()["isolated"][1]), "open": (True, 0)}


def test_an_action_cannot_end_what_is_not_its_own(farm: Farm) -> None:
    restarts = farm.workers()["isolated"][1]
    assert farm.run("isolated", "kill -9 -1; echo sent").startswith("ok sent")
    assert farm.workers()["isolated"] == (True, restarts)


def test_nothing_of_an_action_stays(farm: Farm) -> None:
    leave = "setsid sleep 4321 > /dev/null 2>&1 < /dev/null & echo x > /tmp/left; echo x > /var/tmp/left; echo $TMPDIR"
    look = "ls /tmp/left /var/tmp/left 2> /dev/null; cat /proc/[0-9]*/comm 2> /dev/null | grep -c '^sleep$'"
    assert farm.run("isolated", leave).startswith("ok /scratch/users/")
    assert "left" not in (seen := farm.run("isolated", look)), seen
    assert farm.run("open", leave).startswith("ok")
    assert "ok /tmp/left" in farm.run("open", look)


def test_the_root_file_system_and_the_drain_are_out_of_reach(farm: Farm) -> None:
    seen = farm.run("isolated", "echo x > /usr/x; echo x > /drain/draining; ls /scratch /scratch/store /drain; true")
    assert (seen.count("Read-only file system"), seen.count("Permission denied")) == (1, 4), seen
    assert farm.run("open", "echo x > /drain/begun && echo written").startswith("ok written")


def test_without_the_guard_a_running_worker_takes_no_more_actions(farm: Farm) -> None:
    farm.guard(on=False)
    seen = farm.run("isolated", "echo ran", timeout=patient(10))
    assert "DeadlineExceeded" in seen, seen
    farm.guard(on=True)
    assert farm.run("isolated", "echo ran again").startswith("ok ran again")


def test_counter_run_without_isolation_an_action_ends_nativelink(farm: Farm) -> None:
    """The scheduler starts the action again, which ends NativeLink again. So this test is the last one."""
    assert farm.workers()["open"] == (True, 0)
    farm.run("open", "kill -9 -1", timeout=20)
    until("the open worker's container to restart", lambda: farm.workers()["open"][1] > 0, 60)

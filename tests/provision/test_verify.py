"""The checks of the action verify find each fault that is planted: on NativeLink or its stand-in, whose actions are
processes of this machine, and on a real API server, whose objects are made as controllers would leave them."""

import contextlib
import re
import socket
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.nativelink.gitops.plugins.plugin_utils import verify
from ansible_collections.nativelink.gitops.plugins.plugin_utils.api import Api
from ansible_collections.nativelink.gitops.plugins.plugin_utils.context import context
from ansible_collections.nativelink.gitops.plugins.plugin_utils.reapi import CallError, Identity, Reapi
from ansible_collections.nativelink.gitops.plugins.plugin_utils.verify import clients, cluster, execution

from testbed import build
from testbed.cluster import Cluster
from testkit.authority import Authority
from testkit.repository import git
from testkit.trees import ROOT, resource, values_of
from tests.testbed.test_standin import SERVICES, Edit, put
from tests.testbed.test_standin import Farm as Process

from .conftest import CLUSTER, ENGINES, Object, Play, engines, step

SPACES = {"nativelink_namespace": "verify", "nativelink_workers_namespace": "verify-workers"}
POOLS = [{"name": name, "platform_properties": {"pool": name}} for name in ("default", "gone")]
SIMPLE = {"supported_platform_properties": {"pool": "exact"}}
TREE: tuple[Edit, ...] = (
    put("stores.0", {"name": "CAS", "verify": {"backend": {"memory": {}}, "verify_size": True, "verify_hash": True}}),
    put("schedulers.0", {"name": "MAIN", "cache_lookup": {"ac_store": "AC", "scheduler": {"simple": SIMPLE}}}),
    put("workers.0.local.platform_properties", {"pool": {"values": ["default"]}}),
    put(f"{SERVICES}.ac.0.read_only", True),
)
"""What the processes of a tree have, and a plain NativeLink has not."""


@contextlib.contextmanager
def process(folder: Path, *faults: Edit) -> Iterator[str]:
    """Run a farm in one process, and yield the address of its clients."""
    with Process(folder, *TREE, *faults) as made:
        yield made.client.cas.removeprefix("grpc://")


def connected(address: str) -> Reapi:
    return Reapi(address, "main", tls=False, name="", ca=None, who=Identity())


def farm_at(address: str, dev: Cluster, **variables: Any) -> verify.Farm:
    stated = {**SPACES, "nativelink_worker_pools": POOLS, "nativelink_edge_open": "a test", **variables}
    client, api = connected(address), Api(str(dev.kubeconfig), dev.context)
    return verify.Farm(context(values_of(CLUSTER, **stated)), api, address, client, client, None, "execute", 20, 8)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with process(tmp_path_factory.mktemp("farm")) as made:
        yield made


@pytest.fixture(scope="module")
def farm(dev: Cluster, address: str) -> Iterator[verify.Farm]:
    dev.apply(*(resource("v1/Namespace", name) for name in SPACES.values()))
    yield farm_at(address, dev)
    dev.run("delete", "namespace", *SPACES.values(), "--wait=false")


def test_the_descriptors_are_those_of_the_pinned_modules() -> None:
    printed = subprocess.run([build.program("reapi-load"), "descriptors"], check=True, capture_output=True).stdout
    assert printed == (ROOT / "roles/nativelink/files/reapi.binpb").read_bytes()


def test_a_farm_without_a_fault(farm: verify.Farm) -> None:
    default = farm.context.pools[0]
    assert clients.capabilities(farm) == f"instance main at {farm.address}: cache and execution"
    assert clients.small_blobs(farm) == "20 of 1 kB written, found and read"
    assert clients.large_blob(farm).startswith("8 MiB written at ")
    assert clients.wrong_bytes(farm) == "not stored; another instance is refused"
    assert clients.results(farm) == "the role execute cannot call UpdateActionResult"
    assert clients.worker_api(farm) == "no route to it; 127.0.0.1 says nothing about other ports"
    assert execution.pool(farm, default).endswith("; a hit afterwards")
    assert execution.reached(farm, default, {"127.0.0.1:1": "a port"}, {farm.address: "the farm"}) == (
        "an action reaches none of 1 closed addresses"
    )


@pytest.mark.parametrize(
    ("fault", "check", "said"),
    [
        (
            put("stores.0", {"name": "CAS", "memory": {}}),
            clients.wrong_bytes,
            "2 of 2 uploads of wrong bytes were stored",
        ),
        (
            put(f"{SERVICES}.ac.0.read_only", False),
            clients.results,
            "a client with the role execute may call ActionCache.UpdateActionResult: OK",
        ),
        (
            put(f"{SERVICES}.worker_api", {"scheduler": "MAIN"}),
            clients.worker_api,
            "the edge leads to the worker API: ",
        ),
        (
            put("schedulers.0", {"name": "MAIN", "simple": SIMPLE}),
            lambda farm: execution.pool(farm, farm.context.pools[0]),
            "an action of pool default runs again instead of a hit",
        ),
        (
            put(f"{SERVICES}.capabilities.0.remote_execution", None),
            clients.capabilities,
            "the instance main offers no execution, or no SHA-256",
        ),
    ],
    ids=["verify", "results", "worker API", "hit", "capabilities"],
)
def test_a_fault_of_the_processes(dev: Cluster, tmp_path: Path, fault: Edit, check: Any, said: str) -> None:
    with process(tmp_path, fault) as address, pytest.raises(verify.Fault, match=said):
        check(farm_at(address, dev))


class Late(Reapi):
    """A client of a farm that answers its second call."""

    def __init__(self, address: str) -> None:
        super().__init__(address, "main", tls=False, name="", ca=None, who=Identity())
        self.called = 0

    def call(self, name: str, **fields: Any) -> Any:
        self.called += 1
        if self.called == 1:
            raise CallError(name, "UNAVAILABLE", "connection refused")
        return super().call(name, **fields)


def test_only_inside_the_cluster_it_waits_for_a_farm_that_starts(farm: verify.Farm) -> None:
    with pytest.raises(CallError, match="connection refused"):
        clients.capabilities(replace(farm, cas=Late(farm.address)))
    inside = replace(farm, api=None, address="", cas=Late(farm.address))
    assert clients.capabilities(inside) == "instance main at the Services: cache and execution"


def test_what_a_role_or_a_stranger_may_not_do(farm: verify.Farm) -> None:
    """This farm has no edge, which would refuse them."""
    with pytest.raises(verify.Fault, match=r"the role read may call ContentAddressableStorage.BatchUpdateBlobs: OK"):
        clients.results(replace(farm, role="read"))
    with pytest.raises(verify.Fault, match="a client without an identity may call FindMissingBlobs: OK"):
        clients.strangers(replace(farm, stranger=connected(farm.address)))
    with pytest.raises(verify.Skipped, match="a test"):
        clients.strangers(farm)
    open_one = pytest.raises(verify.Fault, match=r"ports of pods are open at 127\.0\.0\.2: .*50080")
    with socket.create_server(("127.0.0.2", 50080)), open_one:
        clients.worker_api(replace(farm, address="127.0.0.2:443"))


def test_an_action_that_no_policy_holds_back(farm: verify.Farm, dev: Cluster) -> None:
    """Actions are processes of this machine here, so they reach the API server."""
    closed, may = execution.addresses(farm)
    assert ({*closed.values()}, may) == ({"the node's metadata", "the API server"}, {})
    open_one = {dev.endpoint.rpartition("/")[2]: "the API server", "127.0.0.1:1": "a closed port"}
    with pytest.raises(verify.Fault, match=r"an action of pool default reaches the API server \([0-9.:]+\)$"):
        execution.reached(farm, farm.context.pools[0], open_one, {})
    with pytest.raises(verify.Fault, match="reaches nothing, not even the CAS"):
        execution.reached(farm, farm.context.pools[0], {}, {"127.0.0.1:1": "a shard of the CAS"})


def test_a_pool_whose_workers_do_not_come(farm: verify.Farm, dev: Cluster) -> None:
    hasty, gone = replace(farm, timeout=2), farm.context.pools[1]
    late = "no worker of pool gone ran an action within 2 s: "
    with pytest.raises(verify.Fault, match=f"{late}there is no Deployment nativelink-worker-gone"):
        execution.pool(hasty, gone)
    container = {"name": "worker", "image": "example.com/worker"}
    pod = {
        "metadata": {"labels": {"pool": "gone"}},
        "spec": {"containers": [container], "nodeSelector": {"no": "such"}},
    }
    spec = {"selector": {"matchLabels": {"pool": "gone"}}, "template": pod}
    dev.apply(resource("apps/v1/Deployment", "nativelink-worker-gone", "verify-workers", spec=spec))
    with pytest.raises(verify.Fault, match=f"{late}pod nativelink-worker-gone-.+: Unschedulable 0/"):
        execution.pool(hasty, gone)


def test_a_certificate_at_its_end(farm: verify.Farm, dev: Cluster) -> None:
    authority, inside = Authority("clients"), replace(farm, address="")
    for days in (90, 5):
        for name, key, content in (
            ("edge-tls", "tls.crt", authority.issue("edge", days=days)[0]),
            ("clients-ca", "ca.crt", authority.pem),
        ):
            dev.apply(resource("v1/Secret", name, "verify", data={key: b64encode(content).decode()}))
        if days == 90:
            assert cluster.certificates(inside).startswith("2; the first to end is tls.crt of Secret verify/edge-tls")
    with pytest.raises(verify.Fault, match=r"^tls.crt of Secret verify/edge-tls ends on \d{4}-\d\d-\d\d$"):
        cluster.certificates(inside)


def applied(dev: Cluster, engine: str, revision: str, trouble: str = "") -> None:
    """Make an engine's object as its controller leaves it."""
    group, version, kind = ENGINES[engine]
    if engine == "flux":
        ready = {"type": "Ready", "status": "False" if trouble else "True", "message": trouble}
        status: Object = {"lastAppliedRevision": f"main@sha1:{revision}", "conditions": [ready]}
    else:
        conditions = [{"type": "SyncError", "message": trouble}] if trouble else []
        sync = {"status": "OutOfSync" if trouble else "Synced", "revision": revision}
        status = {"sync": sync, "health": {"status": "Healthy"}, "conditions": conditions}
    dev.apply(resource(f"{group}/{version}/{kind}", f"nativelink-{CLUSTER}", "verify", status=status))


@pytest.mark.parametrize("engine", ENGINES)
def test_gitops_at_another_commit(farm: verify.Farm, dev: Cluster, tmp_path: Path, engine: str) -> None:
    kind = ENGINES[engine][2]
    tree = tmp_path / "clusters" / CLUSTER
    tree.mkdir(parents=True)
    git(tmp_path, "init", "--quiet")
    commits = []
    for number in range(2):
        (tree / "file").write_text(f"{number}")
        git(tmp_path, "add", "--all")
        git(tmp_path, "commit", "--quiet", "--message=A tree")
        commits.append(git(tmp_path, "rev-parse", "HEAD").strip())
    variables = {"gitops_provider": engine, "gitops_namespace": "verify"}
    told = farm_at(farm.address, dev, nativelink_clusters_dir=str(tree.parent), **variables)
    with engines(dev, engine):
        with pytest.raises(verify.Fault, match=f"there is no {kind} verify/nativelink-dev"):
            cluster.gitops(told)
        applied(dev, engine, commits[1])
        assert cluster.gitops(told) == f"{engine} has synced {commits[1][:12]}, the tree that is here"
        applied(dev, engine, commits[0])
        with pytest.raises(verify.Fault, match=f"synced {commits[0][:12]}, which differs from the tree here: .*file"):
            cluster.gitops(told)
        applied(dev, engine, "0123456789abcdef")
        with pytest.raises(verify.Fault, match="synced 0123456789ab, which this checkout does not have"):
            cluster.gitops(told)
        applied(dev, engine, commits[1], "a broken file")
        with pytest.raises(verify.Fault, match="a broken file"):
            cluster.gitops(told)


def summary(available: int, inodes: int) -> Object:
    """Return what a kubelet measures of a volume with 1,000 bytes and 1,000 inodes."""
    claim = {"name": "data-nativelink-cas-0", "namespace": "verify"}
    size = {"availableBytes": available, "capacityBytes": 1000, "inodesFree": inodes, "inodes": 1000}
    return {"node": {}, "pods": [{"volume": [{"name": "other"}, {"name": "data", "pvcRef": claim, **size}]}]}


def test_a_cas_pod_without_room() -> None:
    assert cluster.room([summary(400, 900), {}], "verify") == "data-nativelink-cas-0 has 40% of its bytes left"
    with pytest.raises(verify.Fault, match=r"^data-nativelink-cas-0 has 3% of its bytes left$"):
        cluster.room([summary(30, 900)], "verify")
    with pytest.raises(verify.Fault, match=r"^data-nativelink-cas-0 has 1% of its inodes left$"):
        cluster.room([summary(400, 10)], "verify")
    with pytest.raises(verify.Skipped):
        cluster.room([summary(30, 10)], "another")


def test_targets_that_prometheus_does_not_reach(dev: Cluster, address: str) -> None:
    variables = {"nativelink_prometheus": "bundled", "nativelink_prometheus_scrapes": ["cluster"]}
    settings = farm_at(address, dev, **variables).context.prometheus
    jobs = ("nativelink-collector", "nativelink-reported", "nativelink-kube-state-metrics")
    jobs += ("nativelink-kubelet-metrics", "nativelink-kubelet-metrics-cadvisor")
    up = [{"scrapePool": job, "health": "up", "scrapeUrl": f"http://{job}", "lastError": ""} for job in jobs]
    assert cluster.lost(settings, up) == []
    down = [{**each, "health": "down", "lastError": "refused"} for each in up[:2]]
    assert cluster.lost(settings, [*down, *up[3:]]) == [
        "nativelink-collector: http://nativelink-collector refused",
        "nativelink-reported: http://nativelink-reported refused",
        "nativelink-kube-state-metrics has no target (pods app.kubernetes.io/name=kube-state-metrics in kube-system)",
    ]


def test_the_action_runs_all_checks_and_says_what_to_do(farm: verify.Farm, play: Play) -> None:
    stated = {
        **SPACES,
        "nativelink_worker_pools": POOLS,
        "nativelink_edge_open": "a test",
        "nativelink_hostname": "a.b",
    }

    def at(address: str, **variables: object) -> Object:
        arguments = {"address": address, "certificates_dir": "/nowhere", "timeout": 2, "megabytes": 1}
        return step({"nativelink.gitops.verify": arguments}, **stated, **variables)

    identified = {"nativelink_edge_client_ca_secret": "clients-ca"}
    run, away, unknown, inside = play.steps(
        at(farm.address), at("127.0.0.1:1"), at(farm.address, **identified), at("services")
    )
    found = dict(re.split("  +", line, maxsplit=2)[:2] for line in run.summary["verified"])
    found.pop("network default")  # where this machine is decides what an action reaches
    assert found == {
        **dict.fromkeys(("capabilities", "small blobs", "large blob", "wrong bytes", "action results"), "ok"),
        **{"strangers": "skipped", "worker API": "ok", "pool default": "ok", "pool gone": "FAILED"},
        **{"network gone": "skipped", "CAS": "FAILED", "certificates": "skipped", "GitOps": "skipped"},
        **{"Prometheus": "skipped"},
    }
    assert run.summary["verified"][0].startswith("capabilities     ok       instance main at 127.0.0.1:")
    assert "dev: CAS: nativelink-cas: it does not exist; docs/alerts/NativeLinkCASPodDown.md\n" in f"{run.message}\n"
    assert "dev: pool gone: no worker of pool gone ran an action within 2 s: " in run.message
    assert away.message.startswith("dev: capabilities: Capabilities.GetCapabilities: UNAVAILABLE ")
    assert unknown.message.startswith(
        "dev: verify_client: there is no certificate and key /nowhere/client.crt; make it "
    )
    # This machine is not inside the cluster.
    assert inside.message.startswith("dev: capabilities: Capabilities.GetCapabilities: UNAVAILABLE ")
    assert inside.summary["verified"][-1] == "Prometheus       skipped  this pod has no token for the API server"

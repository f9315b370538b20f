"""The playbooks status and trace on a real API server with fake pods. Their logs and the Prometheus are elsewhere."""

import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.request import urlopen

import pytest
from ansible_collections.nativelink.gitops.plugins.plugin_utils import farm, scheduler_log, trace
from ansible_collections.nativelink.gitops.plugins.plugin_utils.context import context
from ansible_collections.nativelink.gitops.plugins.plugin_utils.matching import not_offered

from testbed.cluster import Cluster
from testbed.waiting import patient, until
from testkit.farm import secure_namespace
from testkit.inventories import CONTEXT, kubeconfig, offline, write_inventory
from testkit.playbooks import run_playbook
from testkit.prometheus import local
from testkit.servers import server
from testkit.site import SMALL, pool
from testkit.trees import resource, values_of

from .conftest import ENGINES, Object, engines

LOG = (Path(__file__).parent / "logs/scheduler.log").read_text()
ACTION = "2a6a6f0432ba8173a6fb385e1de02c0b305a8e263e39188cb10f24a79f3c54e7"
INVOCATION = "2c8f03d5-03b4-474d-92f2-4a0fcd059cb2"
VARIABLES: Object = {
    **SMALL,
    "nativelink_namespace": "status",
    "nativelink_workers_namespace": "status-workers",
    "nativelink_worker_pools": [pool("default", max_replicas=1), pool("large", platform_properties={"gpu": "yes"})],
    "nativelink_scheduler_platform_properties": {"pool": "exact", "cpu_count": "minimum", "gpu": "exact"},
    "nativelink_metrics": ["scheduler", "cas"],
    "nativelink_prometheus": "operator",
    "nativelink_metrics_namespaces": ["monitoring"],
    "gitops_provider": "flux",
    "gitops_namespace": "status-engine",
}
# What Prometheus has: an alert of the cluster and one of another, the room, and the demand.
RULES: list[Object] = [
    {"alert": "NativeLinkPoolAtMaximum", "labels": {"severity": "warning", "cluster": "dev"}},
    {"alert": "NativeLinkRedisDown", "labels": {"severity": "critical", "cluster": "other"}},
    {"record": "nativelink_execution_active_count", "labels": {"execution_stage": "queued"}, "expr": "vector(3)"},
    {"record": "nativelink_execution_active_count", "labels": {"execution_stage": "executing"}, "expr": "vector(2)"},
    *(
        {"record": f"kubelet_volume_stats_{part}_bytes", "labels": {"persistentvolumeclaim": claim}, "expr": expression}
        for claim in ("data-nativelink-cas-0", "data-other-0")
        for part, expression in (("available", "vector(30)"), ("capacity", "vector(40)"))
    ),
]
TABLE = """\
CLUSTER  VERSION               ENGINE                              POOL     NOW      MIN  MAX  QUEUED  RUNNING  ROOM  ALERTS  VERIFIED
absent   unknown
argo     v1.6.6 (runs v1.3.2)  argocd OutOfSync Healthy 89abcdef   default  1        1    1    3       2        75%   0       2026-11-30T16:00:00Z ok
                                                                   large    missing  1    2
dead     unknown
dev      v1.6.6 (runs v1.3.2)  flux ReconciliationFailed 0123abcd  default  1        1    1    3       2        75%   1       2026-11-30T16:00:00Z ok
                                                                   large    missing  1    2
slow     unknown

absent: the namespace nowhere does not exist; bootstrap the cluster
argo: runs NativeLink v1.3.2, and the inventory wants v1.6.6
argo: argocd: OutOfSync Healthy
argo: pool large has no Deployment
argo: the scheduler's log cannot be read
dead: the API server https://127.0.0.1:1 does not answer ([Errno 111] Connection refused); start the cluster, or correct its kubeconfig
dev: runs NativeLink v1.3.2, and the inventory wants v1.6.6
dev: flux: ReconciliationFailed: no space left
dev: pool large has no Deployment
dev: the scheduler's log cannot be read
dev: alert NativeLinkPoolAtMaximum (warning)
slow: it did not tell all in time; start the cluster, check the network to it, or allow more time
"""  # noqa: E501 (a table)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("prometheus")
    rules = [{"expr": "vector(1)", **rule, "labels": {"namespace": "status", **rule["labels"]}} for rule in RULES]
    (folder / "rules.yaml").write_text(json.dumps({"groups": [{"name": "all", "rules": rules}]}))
    settings = {"global": {"evaluation_interval": "1s"}, "rule_files": ["rules.yaml"]}
    with local("prometheus", folder, settings) as url:
        asked = f"{url}/api/v1/query?query=count(ALERTS)%2Bcount(kubelet_volume_stats_capacity_bytes)"
        until("the rules to be evaluated", lambda: b'"4"' in urlopen(asked).read(), 30)
        yield url


def workload(name: str, namespace: str, image: str, **labels: str) -> Object:
    selected = {"app.kubernetes.io/part-of": "nativelink", **labels}
    container = {"name": "nativelink", "image": image}
    security = {"seccompProfile": {"type": "RuntimeDefault"}, "runAsNonRoot": True, "runAsUser": 65532}
    container["securityContext"] = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    template = {"metadata": {"labels": selected}, "spec": {"containers": [container], "securityContext": security}}
    spec = {"selector": {"matchLabels": selected}, "template": template}
    return resource("apps/v1/Deployment", name, namespace, spec=spec, metadata={"labels": selected})


@pytest.fixture(scope="module")
def cluster(dev: Cluster) -> Iterator[Cluster]:
    """Return a cluster with a pool, an older scheduler and an engine that fails."""
    with engines(dev, *ENGINES):
        space, workers = secure_namespace("status", "restricted"), secure_namespace("status-workers", "baseline")
        space["metadata"]["annotations"] = {"nativelink.gitops/verified": "2026-11-30T16:00:00Z ok"}
        dev.apply(space, workers, resource("v1/Namespace", "status-engine"))
        component = "app.kubernetes.io/component"
        dev.apply(
            workload("nativelink-scheduler", "status", "example.com/nativelink:v1.3.2", **{component: "scheduler"}),
            workload("nativelink-worker-default", "status-workers", "example.com/init:v1.3.2@sha256:" + "0" * 64),
        )
        failed = {"type": "Ready", "status": "False", "reason": "ReconciliationFailed", "message": "no space left"}
        state = {"conditions": [failed], "lastAppliedRevision": "main@sha1:0123abcdef"}
        synced = {"sync": {"status": "OutOfSync", "revision": "89abcdef01"}, "health": {"status": "Healthy"}}
        made = [
            resource("kustomize.toolkit.fluxcd.io/v1/Kustomization", "nativelink-dev", "status-engine", status=state),
            resource("argoproj.io/v1alpha1/Application", "nativelink-argo", "status-engine", status=synced),
        ]
        until("the kinds of the engines", lambda: dev.apply(*made) is None, 30)
        dev.rolled_out("status", "deployment/nativelink-scheduler")
        dev.rolled_out("status-workers", "deployment/nativelink-worker-default")
        yield dev
        dev.run("delete", "namespace", "status", "status-workers", "status-engine", "--wait=false")


def test_the_table_of_all_clusters(cluster: Cluster, prometheus: str, tmp_path: Path) -> None:
    there = {"cluster_kubeconfig": str(cluster.kubeconfig), "cluster_context": cluster.context}
    with server(lambda _: time.sleep(600)) as port:
        slow, dead = (
            {"cluster_kubeconfig": str(kubeconfig(tmp_path / name, f"https://127.0.0.1:{number}"))}
            for name, number in (("slow", port), ("dead", 1))
        )
        argo = {**there, "gitops_provider": "argocd"}
        absent = {**there, "nativelink_namespace": "nowhere"}
        hosts = {"dev": there, "argo": argo, "absent": absent, "slow": slow, "dead": dead}
        inventory = write_inventory(tmp_path, hosts, **{**offline(), **VARIABLES, "cluster_context": CONTEXT})
        file = tmp_path / "status.json"
        stated = {"status_json": str(file), "status_prometheus_url": prometheus, "status_timeout": round(patient(5))}
        run = run_playbook("status", inventory, "-e", json.dumps(stated))
    assert run.status == 2
    assert "not all is known of absent, dead, slow" in run.output
    shown = run.output[run.output.index("CLUSTER  ") :]
    assert shown.strip() == TABLE.strip()
    found = json.loads(file.read_text())["clusters"]["dev"]
    assert found["pools"]["default"] == {"now": 1, "wanted": 1, "min": 1, "max": 1, "queued": None, "executing": None}
    assert found["room"] == {"data-nativelink-cas-0": 0.75}
    assert "error" not in found


def test_trace_asks_for_what_it_can_look_for(tmp_path: Path) -> None:
    inventory = write_inventory(tmp_path, {"dev": {"cluster_kubeconfig": "nowhere", "cluster_context": "x"}})
    run = run_playbook("trace", inventory, "-e", "trace_action=//main:hello")
    problem = "is neither the digest of an action (HASH/SIZE) nor the ID of an invocation of Bazel"
    assert f"trace_action: //main:hello {problem}; copy it from the client's log" in run.output
    assert run.status == 2


def test_the_log_tells_who_ran_an_action() -> None:
    (run,) = scheduler_log.assignments(LOG, ACTION)
    assert run.digest == f"{ACTION}/141"
    assert run.worker == "nativelink-worker-default-41f1ece11-8621-6afc-99d8-134d1ea36130"
    assert run.operation == "98104fee-a2b9-4ca5-b654-6927b2c612ff"
    assert run.properties == {"OSFamily": "Linux", "pool": "default"}
    assert (run.at.isoformat(), round(run.waited, 6)) == ("2026-11-30T17:11:47.051627+00:00", 0.002203)
    assert str(scheduler_log.ended(LOG, run.operation)) == "2026-11-30 17:11:48.622801+00:00"
    operations = [each.operation for each in scheduler_log.assignments(LOG, INVOCATION)]
    assert operations == ["98104fee-a2b9-4ca5-b654-6927b2c612ff", "48d09883-165d-404a-b843-8a16f6755521"]
    asked = scheduler_log.request(LOG, ACTION)
    assert asked
    assert (asked[0].isoformat(), asked[1]) == ("2026-11-30T17:11:47.051343+00:00", f"{ACTION}/141")
    assert scheduler_log.request(LOG, "0" * 64) is None


def test_the_log_tells_what_no_worker_has() -> None:
    known = context(values_of(**VARIABLES))
    assert scheduler_log.unmatched(LOG) == {("", "two"), ("cpu_count", "99"), ("pool", "nosuch")}
    reasons = [not_offered(known, *pair) for pair in sorted(scheduler_log.unmatched(LOG))]
    assert reasons == [
        "cpu_count=two: NativeLink wants a number, and tries without end",
        "cpu_count=99: no pool offers it; they offer 1",
        "pool=nosuch: no pool offers it; they offer default",
    ]
    # A pool offers these: their workers are busy, or not there yet.
    assert [not_offered(known, *pair) for pair in (("pool", "default"), ("cpu_count", "1"), ("gpu", "yes"))] == [""] * 3


@pytest.mark.parametrize(
    ("asked", "reasons"),
    [
        ({"pool": "nosuch"}, ["pool=nosuch: no pool offers it; they offer default"]),
        (
            {"pool": "default", "gpu": "yes"},
            ["pool default does not offer its gpu", "pool large does not offer its pool"],
        ),
        (
            {"pool": "default"},
            ["pool default: all 1 slots, or what they offer, are taken, and it has its maximum of 1 workers"],
        ),
        ({"gpu": "yes"}, ["pool large: it has no Deployment; push the tree"]),
        (None, ["the CAS does not have the action, so its properties are not known"]),
    ],
)
def test_why_an_action_waits(cluster: Cluster, asked: Object | None, reasons: list[str]) -> None:
    there = {"cluster_kubeconfig": str(cluster.kubeconfig), "cluster_context": cluster.context}
    values = values_of("dev", **{**VARIABLES, **there})

    def ask(each: farm.Farm, found: Object, asked: Object | None) -> None:
        found["reasons"] = trace.reasons(each, asked)

    assert farm.asked({"dev": values}, partial(ask, asked=asked), 10) == {"dev": {"reasons": reasons}}

"""What Flux and Argo CD have to do alike, with each kind of change to the tree that the playbooks render.

The tests of an engine share a cluster and run in the order of the file. Each leaves the last commit applied.
"""

import base64
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed.waiting import ClusterError, patient
from testkit import numbers, runbooks
from testkit.engines import CAS, NAME, PASSWORD, USER, WORKERS, Engine
from testkit.farm import fingerprint
from testkit.git_server import certificate
from testkit.playbooks import verified
from testkit.prometheus import Alerts
from testkit.trees import ROOT, resource
from tests.e2e.engines.conftest import KEPT, replicas

LIMITED = {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "300Mi"}}
# What each engine says about an object that it may not apply: a Secret, and a ConfigMap in namespace default.
FORBIDDEN = {
    "flux": [f'User "system:serviceaccount:flux-system:nativelink-{NAME}" cannot'] * 2,
    "argocd": [
        f"resource :Secret is not permitted in project nativelink-{NAME}",
        "namespace default is not permitted in project",
    ],
}
VERIFY = "docker.io/testbed/verify:v0"
CHECKS = ("capabilities", "small blobs", "large blob", "wrong bytes", "action results")
SKIPPED_CHECKS = ("strangers", "worker API", "CAS", "certificates", "GitOps", "Prometheus")
# What each engine says of a Job that fails. With Flux it is repeated.
REPORTED = {
    "flux": ("HealthCheckFailed", "Job/nativelink/nativelink-verify status: 'InProgress'"),
    "argocd": ("'hookPhase': 'Failed'", "'name': 'nativelink-verify'"),
}


@pytest.fixture(scope="module")
def alerts(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alerts]:
    with engine.alerts(tmp_path_factory.mktemp("alerts")) as found:
        yield found


def running(engine: Engine) -> dict[str, str]:
    """Return what a bad commit must not change."""
    return fingerprint(engine.where, CAS, WORKERS)


def test_the_commands_of_the_runbooks_run(engine: Engine) -> None:
    assert runbooks.run(engine.where, engine.kind) == ""


def test_a_pushed_limit_arrives_and_replaces_the_pods_that_the_summary_names(engine: Engine) -> None:
    """A patch of the user's survives the rendering."""
    team = {"annotations": {"example.com/team": "builds"}}
    patch = resource("apps/v1/Deployment", "nativelink-scheduler", CAS, metadata=team)
    engine.add("patches/team.yaml", patch, patches=[{"path": "patches/team.yaml"}])
    engine.site.set(NAME, nativelink_cas_resources=LIMITED)
    summary = engine.site.playbook("render").summary[NAME]
    assert re.findall(r"^  rollout .*\n(?: {15}.*\n)*", summary, re.MULTILINE) == [
        "  rollout      CAS: its pods restart one after another; the cache on their volumes stays\n"
    ]

    before = fingerprint(engine.where, CAS, kinds="pods").items()
    engine.applied(engine.site.commit("More memory for the CAS, and a patch"), 90)
    assert engine.get("pod/nativelink-cas-0")["spec"]["containers"][0]["resources"]["limits"]["memory"] == "300Mi"
    after = fingerprint(engine.where, CAS, kinds="pods").items()
    assert {name for name, _ in before ^ after} == {"Pod/nativelink-cas-0"}
    assert engine.get("deployment/nativelink-scheduler")["metadata"]["annotations"]["example.com/team"] == "builds"


@pytest.mark.bench
def test_seconds_from_a_push(engine: Engine, rounds: int) -> None:
    """Measure until the limit is applied, and until the new pod is ready."""

    path = ".spec.template.spec.containers[0].resources.limits.memory"
    found: dict[str, list[float]] = {"applied": [], "the new pod is ready": []}
    for wanted in (f"{300 + number}Mi" for number in range(1, rounds + 1)):
        engine.site.set(NAME, nativelink_cas_resources={**LIMITED, "limits": {"memory": wanted}})
        engine.site.playbook("render")
        commit = engine.site.commit(f"{wanted} for the CAS")
        began = time.monotonic()
        engine.ask()
        cas = ("-n", CAS, "wait", "statefulset/nativelink-cas", f"--for=jsonpath={{{path}}}={wanted}", "--timeout=300s")
        engine.where.run(*cas)
        found["applied"].append(time.monotonic() - began)
        engine.where.rolled_out(CAS, "statefulset/nativelink-cas")
        found["the new pod is ready"].append(time.monotonic() - began)
        engine.applied(commit, 300)
    numbers.head(f"{engine.kind}: seconds from the push")
    for what, seconds in found.items():
        numbers.row(f"  {what}", seconds)


def test_hand_edits_are_healed(engine: Engine) -> None:
    engine.where.run("-n", WORKERS, "scale", "deployment/nativelink-worker-kept", "--replicas=3")
    engine.where.run("-n", CAS, "delete", "networkpolicy", "default-deny")
    engine.patch("service/nativelink-cas", {"spec": {"selector": {"wrong": "one"}}})

    def healed() -> bool:
        selector = engine.get("service/nativelink-cas")["spec"]["selector"]
        there = engine.get("networkpolicy/default-deny") != {}
        return replicas(engine, "kept") == 1 and "wrong" not in selector and there

    engine.eventually("the tree's state", healed)


def test_removed_pool_is_pruned(engine: Engine) -> None:
    before = engine.get("deployment/nativelink-worker-kept", WORKERS)["metadata"]["uid"]
    pools = engine.site.hosts[NAME]["nativelink_worker_pools"]
    engine.site.set(NAME, nativelink_worker_pools=[each for each in pools if each["name"] != "gone"])
    summary = engine.site.playbook("render").summary[NAME]
    # The longest action (1 min), the upload timeout (10 min) and the margin (5 min).
    assert "pool gone: is removed; running actions finish first, within 16m\n" in summary
    engine.applied(engine.site.commit("Without the pool gone"))
    for kind in ("deployment", "service", "poddisruptionbudget", "configmap"):
        assert not [name for name in engine.names(kind, WORKERS) if "worker-gone" in name]
    assert engine.get("deployment/nativelink-worker-kept", WORKERS)["metadata"]["uid"] == before


def test_the_cas_stays_when_its_file_is_removed(engine: Engine) -> None:
    """The annotation protects the CAS. Another StatefulSet, without the annotation, is pruned."""
    labels = {"app": "bare"}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "bare", "image": "busybox"}]}}
    spec = {"replicas": 0, "serviceName": "bare", "selector": {"matchLabels": labels}, "template": pod}
    bare = resource("apps/v1/StatefulSet", "bare", CAS, spec=spec)
    own = engine.file("kustomization.yaml").read_text()
    engine.add("bare.yaml", bare)
    engine.applied(engine.site.commit("A StatefulSet without protection"))
    before = running(engine)

    engine.file("kustomization.yaml").write_text(own)
    engine.edit("rendered/kustomization.yaml", "  - cas/statefulset.yaml\n", "")
    engine.applied(engine.site.commit("By mistake"), ready=False)
    engine.eventually("the bare one to be pruned", lambda: engine.get("statefulset/bare") == {}, 60)
    after = running(engine)
    assert after == {name: value for name, value in before.items() if name != "StatefulSet/bare"}
    assert {"StatefulSet/nativelink-cas", "PersistentVolumeClaim/data-nativelink-cas-0"} <= after.keys()

    engine.applied(engine.site.revert("HEAD", "HEAD~1"))
    assert running(engine) == after


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("rendered/kustomization.yaml", "cas/service.yaml", "cas/no-service.yaml", "no-service.yaml"),
        ("rendered/cas/service.yaml", "port: 50051", "port: 500510", "Invalid value: 500510"),
    ],
    ids=["build", "schema"],
)
def test_a_broken_commit_is_reported_and_changes_nothing(
    engine: Engine, alerts: Alerts, file: str, old: str, new: str, words: str
) -> None:
    before = running(engine)
    engine.edit(file, old, new)
    engine.site.commit("Broken")
    engine.says(words)
    assert running(engine) == before
    if "kustomization" in file:  # Argo CD may say Synced again after a refusal: see docs/gitops.md
        alerts.fires("GitOpsFailing")
    engine.applied(engine.site.revert())
    alerts.ended()
    assert running(engine) == before


@pytest.mark.parametrize(("number", "kind", "namespace"), [(0, "Secret", CAS), (1, "ConfigMap", "default")])
def test_other_kinds_and_namespaces_are_refused(engine: Engine, number: int, kind: str, namespace: str) -> None:
    before = running(engine)
    engine.add("stranger.yaml", resource(f"v1/{kind}", "stranger", namespace))
    engine.site.commit(f"More than is allowed: {kind}")
    engine.says(FORBIDDEN[engine.kind][number], seconds=60)
    assert engine.get(f"{kind}/stranger", namespace) == {}
    assert running(engine) == before
    engine.applied(engine.site.revert())


def test_a_suspended_sync_stays_suspended(engine: Engine, alerts: Alerts) -> None:
    def pools(**change: int) -> list[dict[str, Any]]:
        now = engine.site.hosts[NAME]["nativelink_worker_pools"]
        return [{**each, **change} if each["name"] == KEPT["name"] else each for each in now]

    engine.patch(engine.pointer, {"spec": engine.suspension}, engine.namespace)
    suspended = engine.get(engine.pointer, engine.namespace)["spec"]
    done = engine.site.playbook("connect")
    assert done.changed == 0, done.output
    assert engine.get(engine.pointer, engine.namespace)["spec"] == suspended
    assert ", main (suspended)" in done.summary[NAME]
    engine.site.set(NAME, nativelink_worker_pools=pools(min_replicas=2))
    engine.site.playbook("render")
    commit = engine.site.commit("Two workers")
    engine.ask()
    wait = ("-n", engine.namespace, "wait", *f"{engine.fetched}{commit}".split())
    engine.where.run(*wait, f"--timeout={patient(60)}s")
    alerts.fires("GitOpsOutOfSync")
    assert replicas(engine, "kept") == 1

    # The summary tells users to run this command.
    (line,) = (line for line in done.summary[NAME].splitlines() if "resume it: " in line)
    command = shlex.split(line.partition("resume it: ")[2])
    subprocess.run([engine.where.kubectl, *command[1:]], check=True, capture_output=True, cwd=ROOT)
    engine.applied(commit)
    assert replicas(engine, "kept") == 2
    alerts.ended()
    assert "suspended" not in engine.site.playbook("connect").summary[NAME]
    engine.site.set(NAME, nativelink_worker_pools=pools(min_replicas=1))
    engine.site.playbook("render")
    engine.applied(engine.site.commit("One worker"))


def test_a_job_verifies_the_farm_and_the_engine_reports_its_faults(engine: Engine) -> None:
    """docs/verify.md describes the Job."""

    def printed() -> str:
        return engine.where.run("-n", CAS, "logs", "job/nativelink-verify")

    engine.site.set(NAME, nativelink_verify_image=VERIFY)
    engine.site.playbook("render")
    engine.applied(engine.site.commit("Verify the farm inside the cluster"), 120)
    pools = [each["name"] for each in engine.site.hosts[NAME]["nativelink_worker_pools"]]
    good = dict.fromkeys((*CHECKS, *(f"{kind} {pool}" for kind in ("pool", "network") for pool in pools)), "ok")
    good |= dict.fromkeys(SKIPPED_CHECKS, "skipped")
    log = printed()
    assert verified(log) == good, log

    engine.edit("rendered/policy/workers.yaml", "\n  egress:\n", "\n  egress:\n    - {}\n")
    engine.edit("rendered/verify/job.yaml", "nativelink.gitops/tree: ", "nativelink.gitops/tree: by-hand-")
    engine.site.commit("Let actions out")
    engine.ask()
    bad = good | dict.fromkeys((f"network {pool}" for pool in pools), "FAILED")
    said = f"network {pools[0]}: an action of pool {pools[0]} reaches the API server ("
    engine.eventually("the Job's fault", lambda: verified(log := printed()) == bad and said in log, 90)
    engine.says(*REPORTED[engine.kind], seconds=60)

    engine.site.set(NAME, nativelink_verify_image="")
    engine.site.playbook("render")
    engine.applied(engine.site.commit("As before"), 150)
    engine.where.run("-n", CAS, "delete", "job/nativelink-verify", "--ignore-not-found")  # Argo CD prunes no hook


def test_untrusted_servers_and_credentials_are_refused(engine: Engine, tmp_path: Path) -> None:
    """The kubelet renews the files that Argo CD trusts every ten seconds here."""
    ssh = {
        "gitops_repository": engine.server.ssh_url,
        "gitops_ssh_private_key_file": str(engine.server.identity),
        "gitops_known_hosts_file": str(engine.server.known_hosts),
        **dict.fromkeys(("gitops_username", "gitops_password", "gitops_ca_file"), ""),
    }
    https = {name: engine.site.hosts[NAME].get(name, "") for name in ssh}

    def connect(**variables: Any) -> None:
        engine.site.set(NAME, **variables)
        engine.site.playbook("connect")

    another, _ = certificate(tmp_path, engine.server.address)
    (tmp_path / "known_hosts").write_text(engine.server.wrong_known_hosts())
    connect(gitops_ca_file=str(another))
    engine.says("x509")
    connect(**{**https, "gitops_password": "wrong"})
    engine.says("authentication required")
    connect(**{**ssh, "gitops_known_hosts_file": str(tmp_path / "known_hosts")})
    engine.says("knownhosts")

    connect(**ssh)
    engine.applied(engine.site.commit("By SSH"))


def test_no_credential_is_in_git_or_in_the_tree(engine: Engine) -> None:
    history = engine.site.git("log", "--all", "--patch")
    assert USER in history, "the history should show the inventory"
    identity = engine.server.identity.read_text().splitlines()[1]
    for secret in (PASSWORD, base64.b64encode(PASSWORD.encode()).decode(), identity):
        assert secret not in history
        assert not [path for path, text in engine.site.tree().items() if secret.encode() in text]
        assert secret not in engine.site.log.read_text()


def test_a_second_bootstrap_changes_nothing_and_the_cluster_matches_the_tree(engine: Engine) -> None:
    """Applying the tree once more, after all tests above, would change nothing either."""
    done = engine.site.playbook("bootstrap")
    assert done.changed == 0, done.output
    tree = str(engine.site.trees / NAME)
    try:
        engine.where.run("diff", "--server-side", "--force-conflicts", "--field-manager=looking", "-k", tree)
    except ClusterError as error:
        pytest.fail(f"the tree differs from what runs: {error}")

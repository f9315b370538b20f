"""Argo CD on a real node: its pinned release syncs a tree from a private Git server to the cluster.

The tests ask for a refresh with an annotation, as a webhook does, so that they do not wait for a poll. They share one
cluster and run in the order of the file. Each test begins and ends with a synced tree.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed import build, cluster, components
from testbed.cluster import Cluster
from testbed.waiting import patient, until
from tests.e2e.alerting import Alerts, engine_alerts, forwarded
from tests.e2e.git_server import GitServer, address_for, certificate
from tests.e2e.site import SMALL, Site, by_ssh, pool

Object = dict[str, Any]

ROOT = Path(__file__).parents[2]
NAME = "prod"
APP = f"nativelink-{NAME}"
CAS, WORKERS = "nativelink", "nativelink-workers"
USER, PASSWORD = "deployer", "n0t-in-Git-4b7d"
SYNC_TIMEOUT = 90  # seconds; short, but enough for a good sync on a slow machine
FIXED = pool("fixed", scaling="none")
AUTO = pool("auto", scaling="keda")
EXTRA = pool("extra", scaling="none")


@dataclass(frozen=True)
class Argo:
    """A cluster whose tree Argo CD syncs from a site's repository."""

    where: Cluster
    site: Site
    server: GitServer

    def get(self, kind: str, name: str, namespace: str = CAS) -> Object:
        """Return an object, or {} if it does not exist."""
        found = self.where.run("-n", namespace, "get", kind, name, "--ignore-not-found", "-o", "json")
        return dict(json.loads(found or "{}"))

    def patch(self, kind: str, name: str, change: Object, namespace: str = CAS) -> None:
        """Change an object by hand."""
        self.where.run("-n", namespace, "patch", kind, name, "--type=merge", "-p", json.dumps(change))

    def application(self) -> Object:
        return self.get("application.argoproj.io", APP, "argocd")

    def status(self) -> tuple[str, str, str]:
        """Return the sync status, the revision and the health."""
        found = self.application()["status"]
        return found["sync"]["status"], found["sync"].get("revision", ""), found["health"].get("status", "")

    def operation(self) -> tuple[str, str]:
        """Return the last operation's phase and message."""
        found = self.application()["status"].get("operationState", {})
        return found.get("phase", ""), found.get("message", "")

    def settled(self, commit: str) -> bool:
        """Return True if the last operation succeeded, or failed for another commit, whose revert needs none."""
        found = self.application()["status"].get("operationState", {})
        phase = found.get("phase")
        return phase == "Succeeded" or (phase == "Failed" and commit not in json.dumps(found))

    def errors(self) -> str:
        """Return the messages of the Application's conditions."""
        return " ".join(each["message"] for each in self.application()["status"].get("conditions", ()))

    def out_of_sync(self) -> list[str]:
        """Return the objects that differ from Git."""
        resources = self.application()["status"]["resources"]
        return [f"{each['kind']}/{each['name']}" for each in resources if each["status"] != "Synced"]

    def refresh(self, how: str = "normal") -> None:
        """Make Argo CD read Git now, as a webhook does. `hard` skips its cache.

        Argo CD 3.6.1 forgets a request that comes during a refresh, so the request is repeated.
        """
        key = "argocd.argoproj.io/refresh"

        def ask() -> None:
            self.patch("application.argoproj.io", APP, {"metadata": {"annotations": {key: how}}}, "argocd")

        def looked() -> bool:
            found = self.application()
            if key in found["metadata"].get("annotations", {}):
                return False
            if found["status"]["reconciledAt"] >= asked:  # when the last refresh began
                return True
            ask()
            return False

        asked = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        ask()
        self.eventually("a refresh", looked, 30)

    def eventually(self, what: str, check: Callable[[], bool], seconds: float) -> None:
        """Wait for a condition. The error shows the state of the Application."""
        until(what, check, seconds, lambda: f"\nit is {self.status()}, {self.operation()}, {self.errors()}")

    def told(self, what: str, check: Callable[[str], bool], seconds: float) -> None:
        """Refresh until the messages of the Application's conditions pass a check."""

        def seen() -> bool:
            self.refresh("hard")
            return check(self.errors())

        self.eventually(what, seen, seconds)

    def arrives(self, commit: str, health: str = "Healthy", seconds: float = 60) -> None:
        """Wait until a pushed commit is applied and the Application has this health."""
        started = time.monotonic()
        self.refresh()
        wanted = ("Synced", commit, health)
        self.eventually(f"{wanted}", lambda: self.status() == wanted and self.settled(commit), seconds)
        print(f"refresh to applied and healthy: {time.monotonic() - started:.1f} s")

    def limit(self) -> str:
        """Return the memory limit of the CAS."""
        (container,) = self.get("statefulset", "nativelink-cas")["spec"]["template"]["spec"]["containers"]
        return str(container["resources"]["limits"]["memory"])

    def paused(self, name: str) -> bool:
        """Return True if KEDA has paused a ScaledObject."""
        conditions = self.get("scaledobject", name, WORKERS)["status"]["conditions"]
        return any(each["type"] == "Paused" and each["status"] == "True" for each in conditions)

    def names(self, kind: str, namespace: str) -> set[str]:
        """Return the names of all objects of a kind."""
        return {each.partition("/")[2] for each in self.where.run("-n", namespace, "get", kind, "-o", "name").split()}

    def running(self) -> dict[str, str]:
        """Return what a bad commit must not change: workloads by UID and generation, pods and volumes by UID."""
        found: dict[str, str] = {}
        for namespace in (CAS, WORKERS):
            kinds = "statefulsets,deployments,pods,persistentvolumeclaims"
            for each in json.loads(self.where.run("-n", namespace, "get", kinds, "-o", "json"))["items"]:
                metadata = each["metadata"]
                if "deletionTimestamp" in metadata:  # a worker may end long after the test that removed it
                    continue
                found[f"{each['kind']}/{metadata['name']}"] = f"{metadata['uid']} {metadata.get('generation', '')}"
        return found

    def file(self, path: str) -> Path:
        """Return the path of a file of the tree."""
        return self.site.tree_of(NAME) / path


@pytest.fixture(scope="module")
def argo(state: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Argo]:
    """Bootstrap a cluster, push its tree, and wait until the first sync is healthy."""
    with cluster.fresh("e2e-argocd", nodes=0, real=True) as where, pytest.MonkeyPatch.context() as patch:
        where.load(*(image for name in ("argocd", "keda", "collector") for image in components.images_of(name)))
        folder = tmp_path_factory.mktemp("argocd")
        with GitServer(folder / "git", address_for(where), USER, PASSWORD) as server:
            site = Site.make(folder / "checkout")
            patch.setenv("GITOPS_PASSWORD", PASSWORD)
            variables = {
                **SMALL,
                "keda_install": "release",
                "nativelink_scaling": "keda",
                "nativelink_worker_pools": [FIXED, AUTO, EXTRA],
                "gitops_provider": "argocd",
                "gitops_repository": server.https_url,
                "gitops_username": server.username,
                "gitops_password": "{{ lookup('env', 'GITOPS_PASSWORD') }}",
                "gitops_ca_file": str(server.ca),
                "gitops_argocd_sync_timeout": SYNC_TIMEOUT,
            }
            site.add(NAME, where, **variables)
            site.bootstrap()
            argo = Argo(where, site, server)
            argo.arrives(site.publish(server), seconds=180)
            yield argo


@pytest.fixture(scope="module")
def alerts(argo: Argo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alerts]:
    """Start a Prometheus that scrapes Argo CD."""
    variables = {"cluster": NAME, "gitops_provider": "argocd", "gitops_namespace": "argocd"}
    with (
        forwarded(argo.where, "argocd", "statefulset/argocd-application-controller", 8082) as address,
        engine_alerts(tmp_path_factory.mktemp("alerts"), {"nativelink-gitops": address}, **variables) as found,
    ):
        yield found


@pytest.fixture(autouse=True)
def synced(argo: Argo) -> None:
    """Wait until the last commit is applied, before each test."""
    commit = argo.site.git("rev-parse", "HEAD")
    argo.eventually("a synced tree", lambda: argo.status()[:2] == ("Synced", commit), 30)


def test_first_sync_brings_everything_to_ready(argo: Argo) -> None:
    for namespace, workload in (
        (CAS, "statefulset/nativelink-cas"),
        (CAS, "deployment/nativelink-scheduler"),
        (WORKERS, "deployment/nativelink-worker-fixed"),
        (WORKERS, "deployment/nativelink-worker-auto"),
        (WORKERS, "deployment/nativelink-worker-extra"),
    ):
        found = argo.where.run("-n", namespace, "get", workload, "-o", "jsonpath={.status.readyReplicas}")
        assert found == "1", workload


def test_no_difference_on_a_synced_tree(argo: Argo) -> None:
    for _ in range(2):
        argo.refresh("hard")
        assert argo.status()[0] == "Synced"
        assert argo.out_of_sync() == []
    assert len(argo.application()["status"]["resources"]) > 30


def test_a_pushed_limit_arrives_and_replaces_the_pods_that_the_summary_names(argo: Argo) -> None:
    def pods() -> set[tuple[str, str]]:
        found = json.loads(argo.where.run("-n", CAS, "get", "pods", "-o", "json"))["items"]
        metadata = [pod["metadata"] for pod in found]
        return {(each["labels"]["app.kubernetes.io/component"], each["uid"]) for each in metadata}

    resources = {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "300Mi"}}
    argo.site.set(NAME, nativelink_cas_resources=resources)
    summary = argo.site.playbook("render").summary[NAME]
    assert re.findall(r"^  rollout .*\n(?: {15}.*\n)*", summary, re.MULTILINE) == [
        "  rollout      CAS: its pods restart one after another; the cache on their volumes stays\n"
    ]

    before = pods()
    argo.arrives(argo.site.commit("More memory for the CAS"), "Healthy", 90)
    assert argo.limit() == "300Mi"
    assert {component for component, _ in before ^ pods()} == {"cas"}


def test_hand_edits_are_healed(argo: Argo) -> None:
    limits = {"limits": {"memory": "64Mi"}}
    container = {"name": "nativelink", "resources": limits}
    argo.where.run(
        *("-n", CAS, "patch", "deployment", "nativelink-scheduler", "-p"),
        json.dumps({"spec": {"template": {"spec": {"containers": [container]}}}}),
    )
    argo.where.run("-n", WORKERS, "scale", "deployment/nativelink-worker-fixed", "--replicas=2")
    argo.where.run("-n", CAS, "delete", "service", "nativelink-cas")

    def healed() -> bool:
        (scheduler,) = argo.get("deployment", "nativelink-scheduler")["spec"]["template"]["spec"]["containers"]
        replicas = argo.get("deployment", "nativelink-worker-fixed", WORKERS)["spec"]["replicas"]
        there = argo.get("service", "nativelink-cas") != {}
        return bool((scheduler["resources"]["limits"]["memory"], replicas, there) == ("256Mi", 1, True))

    argo.eventually("limit, replicas and Service to be as in Git", healed, 30)


def test_scaled_object_cas_and_volume_are_healthy(argo: Argo, tmp_path: Path) -> None:
    """Argo CD's command shows all three as healthy. It reads the same state as the web page."""
    settings = yaml.safe_load(argo.where.kubeconfig.read_text())
    settings["contexts"][0]["context"]["namespace"] = "argocd"  # where the command looks for the installation
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(settings))
    binary = build.binaries({"argocd": build.COMPONENT_SETS["argocd"]})["argocd"]
    environment = {**os.environ, "KUBECONFIG": str(tmp_path / "kubeconfig"), "HOME": str(tmp_path)}
    rows = (
        r"ScaledObject/nativelink-worker-auto +Synced +Healthy",
        r"StatefulSet/nativelink-cas +Synced +Healthy",
        r"PersistentVolumeClaim/data-nativelink-cas-0 +Healthy",
    )
    told = ""

    def shown() -> bool:
        # The command also starts an API server, which sometimes makes it fail with "context canceled".
        nonlocal told
        command = [binary, "app", "get", APP, "--core", "-o", "tree"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        told = done.stdout + done.stderr
        return done.returncode == 0 and all(re.search(row, done.stdout) for row in rows)

    until("the command to show all three", shown, 30, lambda: f":\n{told}")


def test_autoscaled_replicas_are_left_alone(argo: Argo) -> None:
    """Argo CD does not reset the replicas that KEDA sets, and a paused ScaledObject is not a difference."""
    key = "autoscaling.keda.sh/paused-replicas"
    name = "nativelink-worker-auto"

    def replicas() -> int:
        return int(argo.get("deployment", name, WORKERS)["spec"]["replicas"])

    def pause(count: int) -> None:
        argo.patch("scaledobject", name, {"metadata": {"annotations": {key: str(count)}}}, WORKERS)
        argo.eventually(f"KEDA to have {count} workers", lambda: replicas() == count, 30)

    before = replicas()
    pause(before + 1)
    for _ in range(2):
        argo.refresh("hard")
        assert argo.status()[0] == "Synced"
        assert argo.out_of_sync() == []
        assert replicas() == before + 1
    pause(before)  # otherwise the HPA removes the worker minutes later, during another test
    argo.patch("scaledobject", name, {"metadata": {"annotations": {key: None}}}, WORKERS)
    argo.eventually("the pause to end", lambda: not argo.paused(name), 30)


@pytest.mark.parametrize("ours", [True, False], ids=["as it is", "with Argo CD's own script"])
def test_a_paused_pool_does_not_delay_a_sync(argo: Argo, ours: bool) -> None:
    """A sync that prunes waits until all objects are healthy. Our health script calls a paused ScaledObject healthy."""
    name, paused = "nativelink-worker-auto", "autoscaling.keda.sh/paused"
    script = "resource.customizations.health.keda.sh_ScaledObject"
    health = argo.get("configmap", "argocd-cm", "argocd")["data"][script]
    if not ours:
        argo.patch("configmap", "argocd-cm", {"data": {script: None}}, "argocd")
    argo.patch("scaledobject", name, {"metadata": {"annotations": {paused: "true"}}}, WORKERS)
    argo.eventually("KEDA to see the pause", lambda: argo.paused(name), 30)
    before = argo.names("configmap", WORKERS)

    file = argo.file("rendered/worker/fixed/worker.json5")
    file.write_text(file.read_text() + "// Another configuration.\n")
    commit = argo.site.commit("Another configuration")
    if ours:
        argo.arrives(commit)
        assert len(argo.names("configmap", WORKERS)) == len(before), "the old ConfigMap should be pruned"
        assert argo.names("configmap", WORKERS) != before
    else:
        argo.refresh()
        waiting = f"waiting for healthy state of keda.sh/ScaledObject/{name}"
        argo.eventually("the sync to wait", lambda: waiting in argo.operation()[1], 60)
        assert argo.names("configmap", WORKERS) > before, "the old ConfigMap should not be pruned"

    argo.patch("configmap", "argocd-cm", {"data": {script: health}}, "argocd")
    argo.patch("scaledobject", name, {"metadata": {"annotations": {paused: None}}}, WORKERS)
    argo.arrives(argo.site.revert(), seconds=SYNC_TIMEOUT + 60)
    assert argo.names("configmap", WORKERS) == before


def test_removed_pool_is_pruned(argo: Argo) -> None:
    argo.site.set(NAME, nativelink_worker_pools=[FIXED, AUTO])
    argo.site.playbook("render")
    argo.arrives(argo.site.commit("Without the pool extra"))
    for kind in ("deployment", "poddisruptionbudget"):
        assert argo.get(kind, "nativelink-worker-extra", WORKERS) == {}
        assert argo.get(kind, "nativelink-worker-fixed", WORKERS) != {}


def test_patch_of_the_user_survives_a_rendering(argo: Argo) -> None:
    patch = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "nativelink-scheduler", "namespace": CAS, "annotations": {"example.com/team": "builds"}},
    }
    argo.file("patches/team.yaml").write_text(yaml.safe_dump(patch))
    own = argo.file("kustomization.yaml")
    own.write_text(own.read_text() + "patches:\n  - path: patches/team.yaml\n")
    argo.site.set(NAME, nativelink_scheduler_resources={"limits": {"memory": "200Mi"}})
    argo.site.playbook("render")
    argo.arrives(argo.site.commit("A patch, and another limit"))
    scheduler = argo.get("deployment", "nativelink-scheduler")
    assert scheduler["metadata"]["annotations"]["example.com/team"] == "builds"
    (container,) = scheduler["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"memory": "200Mi"}


def test_deleting_the_cas_in_git_does_not_delete_it(argo: Argo) -> None:
    """The annotation protects the CAS. Another StatefulSet, without the annotation, is pruned."""
    bare = {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "bare", "namespace": CAS},
        "spec": {
            "replicas": 0,
            "serviceName": "bare",
            "selector": {"matchLabels": {"app": "bare"}},
            "template": {
                "metadata": {"labels": {"app": "bare"}},
                "spec": {"containers": [{"name": "bare", "image": "busybox"}]},
            },
        },
    }
    argo.file("bare.yaml").write_text(yaml.safe_dump(bare))
    own = argo.file("kustomization.yaml")
    own.write_text(own.read_text().replace("  - rendered\n", "  - rendered\n  - bare.yaml\n"))
    argo.arrives(argo.site.commit("A StatefulSet without protection"))
    before = argo.running()

    own.write_text(own.read_text().replace("  - bare.yaml\n", ""))
    rendered = argo.file("rendered/kustomization.yaml")
    rendered.write_text(rendered.read_text().replace("  - cas/statefulset.yaml\n", ""))
    argo.site.commit("By mistake")
    argo.refresh()
    argo.eventually("the bare one to be pruned", lambda: argo.get("statefulset", "bare") == {}, 60)
    argo.eventually("the difference in the status", lambda: argo.out_of_sync() == ["StatefulSet/nativelink-cas"], 30)
    after = argo.running()
    assert after == {name: value for name, value in before.items() if name != "StatefulSet/bare"}
    assert "PersistentVolumeClaim/data-nativelink-cas-0" in after
    argo.site.git("revert", "--no-edit", "HEAD")
    own.write_text(own.read_text().replace("  - bare.yaml\n", ""))
    argo.arrives(argo.site.commit("Both as before"))
    assert argo.running() == after


def test_broken_build_is_reported_and_reverted(argo: Argo, alerts: Alerts) -> None:
    before = argo.running()
    own = argo.file("kustomization.yaml")
    own.write_text(own.read_text() + "components:\n  - missing\n")
    argo.site.commit("A folder that is not there")
    argo.refresh("hard")
    argo.eventually("the error in the status", lambda: "missing" in argo.errors(), 30)
    assert argo.running() == before
    alerts.fires("GitOpsFailing")
    argo.arrives(argo.site.revert())
    alerts.quiet()
    assert argo.errors() == ""
    assert argo.running() == before


def test_refused_object_is_reported_and_reverted(argo: Argo) -> None:
    """A refresh from Git reports the refusal. A later one of the cluster may say Synced again: see docs/argocd.md."""
    before = argo.running()
    file = argo.file("rendered/cas/service.yaml")
    file.write_text(file.read_text().replace("port: 50051", "port: 500510"))
    argo.site.commit("A port that there is not")
    argo.told("the refusal in the status", lambda errors: "Invalid value: 500510" in errors, 30)
    assert argo.running() == before
    argo.arrives(argo.site.revert())
    assert argo.running() == before


@pytest.mark.parametrize(
    ("kind", "namespace", "refusal"),
    [
        ("Secret", CAS, "resource :Secret is not permitted in project nativelink-prod"),
        ("ConfigMap", "default", "namespace default is not permitted in project"),
    ],
    ids=["another kind", "another namespace"],
)
def test_the_project_refuses_other_kinds_and_namespaces(argo: Argo, kind: str, namespace: str, refusal: str) -> None:
    before = argo.running()
    stranger = {"apiVersion": "v1", "kind": kind, "metadata": {"name": "stranger", "namespace": namespace}}
    argo.file("stranger.yaml").write_text(yaml.safe_dump(stranger))
    own = argo.file("kustomization.yaml")
    own.write_text(own.read_text().replace("  - rendered\n", "  - rendered\n  - stranger.yaml\n"))
    argo.site.commit("A stranger")
    argo.refresh()
    argo.eventually("the refusal in the status", lambda: refusal in str(argo.application()["status"]), 60)
    assert argo.get(kind, "stranger", namespace) == {}
    assert argo.running() == before
    argo.arrives(argo.site.revert())


def test_a_suspended_application_stays_suspended(argo: Argo, alerts: Alerts) -> None:
    def replicas() -> int:
        return int(argo.get("deployment", "nativelink-worker-fixed", WORKERS)["spec"]["replicas"])

    off = {"spec": {"syncPolicy": {"automated": {"enabled": False}}}}
    argo.patch("application.argoproj.io", APP, off, "argocd")
    done = argo.site.playbook("connect")
    assert argo.application()["spec"]["syncPolicy"]["automated"]["enabled"] is False
    argo.where.run("-n", WORKERS, "scale", "deployment/nativelink-worker-fixed", "--replicas=2")
    for _ in range(2):
        argo.refresh("hard")
        assert argo.status()[0] == "OutOfSync"
    assert replicas() == 2
    alerts.fires("GitOpsOutOfSync")

    # docs/changes.md tells users to check in this way that the engine knows the new commit.
    argo.file("patches/note.txt").write_text("A commit that changes no object.\n")
    commit = argo.site.commit("A note")
    argo.refresh()
    seen = f"--for=jsonpath={{.status.sync.revision}}={commit}"
    argo.where.run("-n", "argocd", "wait", f"application/{APP}", seen, f"--timeout={patient(60)}s")

    # The summary tells users to run this command.
    (line,) = (line for line in done.summary[NAME].splitlines() if "resume it: " in line)
    command = shlex.split(line.partition("resume it: ")[2])
    subprocess.run([argo.where.kubectl, *command[1:]], check=True, capture_output=True, cwd=ROOT)
    argo.eventually("the replicas of Git", lambda: replicas() == 1, 30)
    alerts.quiet()
    assert "suspended" not in argo.site.playbook("connect").summary[NAME]


@pytest.mark.parametrize("prune_last", [True, False], ids=["as it is", "without PruneLast"])
def test_prune_last_keeps_the_old_configuration_while_a_rollout_hangs(argo: Argo, prune_last: bool) -> None:
    """With PruneLast, an old ConfigMap stays until the new pods are ready. Without it, the ConfigMap is lost."""
    options = argo.application()["spec"]["syncPolicy"]["syncOptions"]
    kept = [option for option in options if prune_last or option != "PruneLast=true"]
    argo.patch("application.argoproj.io", APP, {"spec": {"syncPolicy": {"syncOptions": kept}}}, "argocd")

    def pods() -> dict[str, Object]:
        text = argo.where.run("-n", WORKERS, "get", "pods", "-l", "nativelink-gitops/pool=fixed", "-o", "json")
        return {each["metadata"]["name"]: each for each in json.loads(text)["items"]}

    argo.eventually("the worker that an earlier test removed to be gone", lambda: len(pods()) == 1, 60)
    (old,) = pods()
    (configuration,) = (
        each["configMap"]["name"] for each in pods()[old]["spec"]["volumes"] if each["name"] == "config"
    )
    file = argo.file("rendered/worker/fixed/worker.json5")
    file.write_text(file.read_text() + "}")
    argo.site.commit("A configuration that no worker can read")
    argo.refresh()
    argo.eventually("a new pod", lambda: len(pods()) == 2, 30)
    if prune_last:
        waiting = "waiting for healthy state of apps/Deployment/nativelink-worker-fixed"
        argo.eventually("the sync to wait", lambda: waiting in argo.operation()[1], 30)
        assert configuration in argo.names("configmap", WORKERS)
    else:
        argo.eventually("the ConfigMap to be lost", lambda: configuration not in argo.names("configmap", WORKERS), 30)
    conditions = {each["type"]: each["status"] for each in pods()[old]["status"]["conditions"]}
    assert conditions["Ready"] == "True", "the old pod should keep working"

    argo.arrives(argo.site.revert(), seconds=SYNC_TIMEOUT + 60)
    assert configuration in argo.names("configmap", WORKERS)
    argo.eventually("one worker", lambda: set(pods()) == {old}, 60)
    argo.patch("application.argoproj.io", APP, {"spec": {"syncPolicy": {"syncOptions": options}}}, "argocd")


def test_untrusted_servers_and_credentials_are_refused(argo: Argo, tmp_path: Path) -> None:
    """Argo CD refuses a wrong CA, password or host key. The kubelet renews the trusted files every ten seconds here."""
    ssh = by_ssh(argo.server)
    https = {name: argo.site.hosts[NAME].get(name, "") for name in ssh}

    def connect(**variables: Any) -> None:
        argo.site.set(NAME, **variables)
        argo.site.playbook("connect")

    def refused(reason: str) -> None:
        argo.told(f"{reason!r} in the status", lambda errors: reason in errors, 40)

    another, _ = certificate(tmp_path, argo.server.address)
    (tmp_path / "known_hosts").write_text(argo.server.wrong_known_hosts())
    connect(gitops_ca_file=str(another))
    refused("x509: certificate signed by unknown authority")
    connect(**{**https, "gitops_password": "wrong"})
    refused("authentication required")
    connect(**{**ssh, "gitops_known_hosts_file": str(tmp_path / "known_hosts")})
    refused("knownhosts: key mismatch")

    connect(**ssh)
    argo.told("no error in the status", lambda errors: not errors, 40)
    argo.arrives(argo.site.commit("By SSH"))
    assert argo.application()["spec"]["source"]["repoURL"].startswith("ssh://")


def test_no_credential_is_in_git(argo: Argo) -> None:
    history = argo.site.git("log", "--all", "--patch")
    assert USER in history, "the history should show the inventory"
    assert PASSWORD not in history
    assert argo.server.identity.read_text().splitlines()[1] not in history


def test_a_second_bootstrap_changes_nothing(argo: Argo) -> None:
    done = argo.site.bootstrap()
    assert done.changed == 0, done.output

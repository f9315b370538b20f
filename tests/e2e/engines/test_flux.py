"""Flux on a real node, with each kind of change to the tree that the playbooks render.

The tests share one cluster and run in the order of the file. Each test leaves Flux in sync with the last commit.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed import build, cluster, components, images
from testbed.cluster import Cluster
from testbed.ports import free_port
from testbed.waiting import ClusterError, patient, until
from testkit.alerting import Alerts, engine_alerts, forwarded
from testkit.git_server import GitServer, address_for, certificate
from testkit.site import SMALL, Site, by_ssh, pool

NAME = "flux"
CAS, SCHEDULER, WORKERS = "statefulset/nativelink-cas", "deployment/nativelink-scheduler", "nativelink-workers"
USER, PASSWORD = "deployer", "n0t-in-Git-9f2c"


class Flux:
    """A cluster whose tree Flux applies, the checkout of the tree, and the Git server."""

    def __init__(self, where: Cluster, server: GitServer, site: Site) -> None:
        self.where, self.server, self.site = where, server, site
        self.tree = site.tree_of(NAME)
        self.rendered = self.tree / "rendered"

    def get(self, thing: str, namespace: str = "nativelink") -> dict[str, Any]:
        """Return an object, or {} if it does not exist."""
        text = self.where.run("-n", namespace, "get", *thing.split("/"), "--ignore-not-found", "-o", "json")
        return json.loads(text or "{}")

    def names(self, kind: str, namespace: str) -> set[str]:
        return set(self.where.run("-n", namespace, "get", kind, "-o", "name").split())

    def sync(self) -> dict[str, Any]:
        return self.get(f"kustomization.kustomize.toolkit.fluxcd.io/nativelink-{NAME}", "flux-system")

    def source(self) -> dict[str, Any]:
        return self.get(f"gitrepository/nativelink-{NAME}", "flux-system")

    def said(self) -> str:
        """Return the conditions of both Flux objects."""
        found = [(each["kind"], each["status"].get("conditions")) for each in (self.source(), self.sync())]
        return f"\n{found}\n{self.where.run('get', 'pods', '-A', '-o', 'wide')}"

    def poke(self, name: str = NAME) -> str:
        """Ask Flux to reconcile an entry at once, as a webhook does. Return the stamp of the request."""
        stamp = str(time.time_ns())
        for kind in ("gitrepository", "kustomization"):
            asked = f"reconcile.fluxcd.io/requestedAt={stamp}"
            self.where.run("-n", "flux-system", "annotate", "--overwrite", kind, f"nativelink-{name}", asked)
        return stamp

    def applied(self, commit: str, seconds: float = 60) -> None:
        """Wait until a commit is applied and ready."""
        self.poke()

        def check() -> bool:
            status = self.sync()["status"]
            return status.get("lastAppliedRevision") == f"main@sha1:{commit}" and ready(self.sync())["status"] == "True"

        until(f"commit {commit} to be applied and ready", check, seconds, self.said)

    def refused(self, reason: str, words: str, seconds: float = 40) -> None:
        """Wait until the Kustomization is not ready for this reason, with these words in its message."""

        def check() -> bool:
            found = ready(self.sync())
            return (found["status"], found["reason"]) == ("False", reason) and words in found["message"]

        until(f"Flux to say {reason}, {words}", check, seconds, self.said)

    def unreachable(self, words: str, seconds: float = 40) -> None:
        """Wait until the GitRepository is not ready, with these words in its message."""

        def check() -> bool:
            found = ready(self.source())
            return found["status"] == "False" and words in found["message"]

        until(f"Flux to say that it can't fetch: {words}", check, seconds, self.said)

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace a text that occurs once in a file of the tree."""
        file = self.tree / path
        assert file.read_text().count(old) == 1, (path, old)
        file.write_text(file.read_text().replace(old, new))

    def limit(self, thing: str = CAS) -> str:
        return str(self.get(thing)["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"])


def ready(thing: dict[str, Any]) -> dict[str, str]:
    """Return the condition Ready, with the status Unknown if it is not about the newest generation."""
    conditions = thing["status"].get("conditions", ())
    found = next((each for each in conditions if each["type"] == "Ready"), None)
    current = found and found.get("observedGeneration") == thing["metadata"]["generation"]
    return found if current else {"status": "Unknown", "reason": "", "message": ""}


@pytest.fixture(scope="module")
def flux(state: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flux]:
    """Bootstrap a cluster, which connects Flux to a repository that is still empty."""
    folder = tmp_path_factory.mktemp("flux")
    with cluster.fresh("e2e-flux", nodes=0, real=True) as where, pytest.MonkeyPatch.context() as patch:
        where.load(*components.images_of("flux"))
        with GitServer(folder / "git", address_for(where), USER, PASSWORD) as server:
            patch.setenv("GITOPS_PASSWORD", PASSWORD)
            site = Site.make(folder / "checkout")
            site.add(
                NAME,
                where,
                **SMALL,
                nativelink_worker_pools=[pool("kept"), pool("gone")],
                gitops_provider="flux",
                gitops_repository=server.https_url,
                gitops_username=USER,
                gitops_password="{{ lookup('env', 'GITOPS_PASSWORD') }}",
                gitops_ca_file=str(server.ca),
                gitops_interval="5s",
                gitops_sync_timeout="30s",
            )
            said = site.bootstrap().summary[NAME]
            assert f"push clusters/{NAME} to main of {server.https_url}: flux applies it from there" in said
            yield Flux(where, server, site)


# The state of Flux's objects as Flux's documentation has kube-state-metrics tell it.
STATES = {
    "kind": "CustomResourceStateMetrics",
    "spec": {
        "resources": [
            {
                "groupVersionKind": {"group": "kustomize.toolkit.fluxcd.io", "version": "v1", "kind": "Kustomization"},
                "metricNamePrefix": "gotk",
                "metrics": [
                    {
                        "name": "resource_info",
                        "help": "The state of an object of Flux.",
                        "each": {"type": "Info", "info": {"labelsFromPath": {"name": ["metadata", "name"]}}},
                        "labelsFromPath": {
                            "exported_namespace": ["metadata", "namespace"],
                            "ready": ["status", "conditions", "[type=Ready]", "status"],
                        },
                    }
                ],
            }
        ]
    },
}


@pytest.fixture(scope="module")
def alerts(flux: Flux, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alerts]:
    """Start a Prometheus that scrapes Flux and kube-state-metrics, which runs on this machine."""
    folder = tmp_path_factory.mktemp("alerts")
    (folder / "states.yaml").write_text(yaml.safe_dump(STATES))
    port = free_port()
    command = [build.program("kube-state-metrics"), f"--kubeconfig={flux.where.kubeconfig}"]
    command += ["--custom-resource-state-only", f"--custom-resource-state-config-file={folder / 'states.yaml'}"]
    command += ["--host=127.0.0.1", f"--port={port}", f"--telemetry-port={free_port()}"]
    variables = {
        "cluster": NAME,
        "gitops_provider": "flux",
        "gitops_namespace": "flux-system",
        "gitops_interval": "5s",
    }
    with (
        (folder / "states.log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as states,
        forwarded(flux.where, "flux-system", "deployment/kustomize-controller", 8080) as address,
    ):
        try:
            jobs = {"nativelink-gitops": address, "nativelink-kube-state-metrics": f"127.0.0.1:{port}"}
            with engine_alerts(folder, jobs, **variables) as found:
                yield found
        finally:
            states.kill()


def test_first_sync_brings_everything_to_ready(flux: Flux) -> None:
    assert flux.names("statefulset", "nativelink") == set()
    flux.applied(flux.site.publish(flux.server), 120)
    assert flux.get(CAS)["status"]["readyReplicas"] == 1
    assert flux.get(SCHEDULER)["status"]["readyReplicas"] == 1
    for name in ("kept", "gone"):
        assert flux.get(f"deployment/nativelink-worker-{name}", WORKERS)["status"]["readyReplicas"] == 1
    assert flux.get("pvc/data-nativelink-cas-0")["status"]["phase"] == "Bound"


def test_no_credential_is_in_git_or_in_the_tree(flux: Flux) -> None:
    secret = flux.get(f"secret/nativelink-{NAME}-repository", "flux-system")["data"]
    assert set(secret) == {"username", "password", "ca.crt"}
    history = flux.site.git("log", "--all", "--patch")
    assert USER in history, "the history should show the inventory"
    for words in (PASSWORD, secret["password"], secret["ca.crt"][:60]):
        assert words not in history
        assert not [path for path, text in flux.site.tree().items() if words.encode() in text]
        assert words not in flux.site.log.read_text()


def test_a_pushed_limit_arrives_and_a_patch_survives_a_render(flux: Flux) -> None:
    patch = {"target": {"kind": "Deployment", "name": "nativelink-scheduler"}, "path": "patches/scheduler.yaml"}
    operation = {"op": "replace", "path": "/spec/template/spec/containers/0/resources/limits/memory", "value": "288Mi"}
    (flux.tree / "patches" / "scheduler.yaml").write_text(yaml.safe_dump([operation]))
    kustomization = yaml.safe_load((flux.tree / "kustomization.yaml").read_text())
    (flux.tree / "kustomization.yaml").write_text(yaml.safe_dump({**kustomization, "patches": [patch]}))

    resources = {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "320Mi"}}
    flux.site.set(NAME, nativelink_cas_resources=resources)
    flux.site.playbook("render")
    assert "patches/scheduler.yaml" in (flux.tree / "kustomization.yaml").read_text()
    assert (flux.limit(), flux.limit(SCHEDULER)) == ("256Mi", "256Mi")

    commit = flux.site.commit("More memory for the CAS, and by hand for the scheduler")
    started = time.monotonic()
    until("the new limit", lambda: flux.limit() == "320Mi", 40, flux.said)
    print(f"commit to applied: {time.monotonic() - started:.1f} s with an interval of 5 s")
    assert flux.limit(SCHEDULER) == "288Mi"
    flux.applied(commit, 90)
    print(f"commit to ready: {time.monotonic() - started:.1f} s")
    running = flux.get("pod/nativelink-cas-0")["spec"]["containers"][0]["resources"]["limits"]
    assert running["memory"] == "320Mi"


def test_hand_edits_are_healed(flux: Flux) -> None:
    flux.where.run("-n", WORKERS, "scale", "deployment/nativelink-worker-kept", "--replicas=3")
    flux.where.run("-n", "nativelink", "delete", "networkpolicy", "default-deny")
    flux.where.run(
        "-n", "nativelink", "patch", "service", "nativelink-cas", "-p", '{"spec":{"selector":{"wrong":"one"}}}'
    )
    started = time.monotonic()

    def healed() -> bool:
        replicas = flux.get("deployment/nativelink-worker-kept", WORKERS)["spec"]["replicas"]
        selector = flux.get("service/nativelink-cas")["spec"]["selector"]
        return replicas == 1 and "wrong" not in selector and bool(flux.get("networkpolicy/default-deny"))

    until("the tree's state", healed, 40, flux.said)
    print(f"healed in {time.monotonic() - started:.1f} s with an interval of 5 s")


def test_annotations_of_kubectl_are_removed_but_not_those_of_another_field_manager(flux: Flux) -> None:
    """Flux also removes annotations of `rollout restart` or of a pause. docs/scaling.md says how to keep them."""
    flux.where.run("-n", "nativelink", "annotate", "service/nativelink-cas", "example.com/goes=1")
    kept = ("example.com/stays=1", "--field-manager=flux-client-side-apply")
    flux.where.run("-n", "nativelink", "annotate", "service/nativelink-cas", *kept)

    def annotations() -> dict[str, str]:
        return dict(flux.get("service/nativelink-cas")["metadata"].get("annotations", {}))

    until("Flux to remove what kubectl has added", lambda: "example.com/goes" not in annotations(), 40, flux.said)
    assert annotations()["example.com/stays"] == "1"
    flux.where.run("-n", "nativelink", "annotate", "service/nativelink-cas", "example.com/stays-")


def test_a_removed_pool_is_pruned(flux: Flux) -> None:
    before = flux.get("deployment/nativelink-worker-kept", WORKERS)["metadata"]["uid"]
    flux.site.set(NAME, nativelink_worker_pools=[pool("kept")])
    summary = flux.site.playbook("render").summary[NAME]
    # The longest action (1 min), the upload timeout (10 min) and the margin (5 min).
    assert "pool gone: is removed; running actions finish first, within 16m\n" in summary
    flux.applied(flux.site.commit("One pool"))
    for kind in ("deployment", "service", "poddisruptionbudget", "configmap"):
        assert not [name for name in flux.names(kind, WORKERS) if "worker-gone" in name]
    assert flux.get("deployment/nativelink-worker-kept", WORKERS)["metadata"]["uid"] == before


def test_the_cas_stays_when_its_file_is_removed(flux: Flux) -> None:
    def lose() -> str:
        flux.edit("rendered/kustomization.yaml", "  - cas/statefulset.yaml\n", "")
        (flux.rendered / "cas" / "statefulset.yaml").unlink()
        return flux.site.commit("Lose the CAS by mistake")

    stateful_set, pod, claim = (
        flux.get(each)["metadata"]["uid"] for each in (CAS, "pod/nativelink-cas-0", "pvc/data-nativelink-cas-0")
    )
    flux.applied(lose())
    assert flux.get(CAS)["metadata"]["uid"] == stateful_set
    assert flux.get("pod/nativelink-cas-0")["metadata"]["uid"] == pod
    assert flux.get("pvc/data-nativelink-cas-0")["metadata"]["uid"] == claim
    flux.applied(flux.site.revert())

    # The counter-run: without the annotation the StatefulSet is pruned, and only its volume stays.
    flux.edit("rendered/cas/statefulset.yaml", "    kustomize.toolkit.fluxcd.io/prune: disabled\n", "")
    flux.applied(flux.site.commit("Without protection"))
    flux.applied(lose())
    until("the StatefulSet to be pruned", lambda: not flux.get(CAS), 20, flux.said)
    assert flux.get("pvc/data-nativelink-cas-0")["metadata"]["uid"] == claim

    flux.applied(flux.site.revert("HEAD", "HEAD~1"), 90)
    assert flux.get("pvc/data-nativelink-cas-0")["metadata"]["uid"] == claim
    assert flux.get(CAS)["status"]["readyReplicas"] == 1


@pytest.mark.parametrize(
    ("file", "old", "new", "reason", "words"),
    [
        ("rendered/kustomization.yaml", "cas/service.yaml", "cas/no-service.yaml", "BuildFailed", "no-service.yaml"),
        ("rendered/cas/service.yaml", "port: 50051", "port: many", "ReconciliationFailed", "nativelink-cas"),
    ],
    ids=["build", "schema"],
)  # fmt: skip
def test_a_broken_commit_is_reported_and_changes_nothing(
    flux: Flux, alerts: Alerts, file: str, old: str, new: str, reason: str, words: str
) -> None:
    before = {each: flux.get(each)["spec"] for each in ("service/nativelink-cas", CAS, SCHEDULER)}
    flux.edit(file, old, new)
    flux.site.commit("Broken")
    started = time.monotonic()
    flux.refused(reason, words)
    print(f"{reason} told in {time.monotonic() - started:.1f} s")
    assert {each: flux.get(each)["spec"] for each in before} == before
    alerts.fires("GitOpsFailing")
    started = time.monotonic()
    flux.applied(flux.site.revert())
    print(f"reverted in {time.monotonic() - started:.1f} s")


def test_old_pods_lose_their_configuration_in_a_rollout_that_fails(flux: Flux) -> None:
    """Flux prunes an old ConfigMap with the commit that replaces it, even if that commit's pods do not start."""

    def pods() -> dict[str, dict[str, Any]]:
        items = json.loads(flux.where.run("-n", WORKERS, "get", "pods", "-o", "json"))["items"]
        return {each["metadata"]["name"]: each for each in items if "deletionTimestamp" not in each["metadata"]}

    (old,) = pods()
    configuration = pods()[old]["spec"]["volumes"]
    (name,) = (each["configMap"]["name"] for each in configuration if each["name"] == "config")
    worker = flux.rendered / "worker" / "kept"
    (worker / "worker.json5").write_text((worker / "worker.json5").read_text() + "// changed\n")
    image = "image: docker.io/library/debian:bookworm-slim"
    flux.edit("rendered/worker/kept/deployment.yaml", image, image + "-not-there")
    flux.site.commit("A new configuration, and an image that is not there")

    # The old pod still works, and restarts its container without the ConfigMap.
    until("the old ConfigMap to be pruned", lambda: not flux.get(f"configmap/{name}", WORKERS), 40, flux.said)
    assert ready_pod(pods()[old])
    flux.where.run("-n", WORKERS, "exec", old, "-c", "worker", "--", "sh", "-c", "kill -TERM 1")
    until("the container's restart", lambda: restarts(pods()[old]) == 1 and ready_pod(pods()[old]), 40, flux.said)

    # A pod that replaces the old one cannot start. docs/flux.md describes this limit.
    flux.where.run("-n", WORKERS, "delete", "pod", old, "--wait=false")

    def stuck() -> bool:
        events = json.loads(flux.where.run("-n", WORKERS, "get", "events", "-o", "json"))["items"]
        missing = {each["involvedObject"]["name"] for each in events if f'"{name}" not found' in each["message"]}
        return bool(missing - {old})

    until("a new pod that misses its ConfigMap", stuck, 40, flux.said)

    # Flux reports the failure when the timeout is over at the latest. Until then the next commit waits.
    flux.refused("HealthCheckFailed", "nativelink-worker-kept", 60)
    flux.applied(flux.site.revert(), 120)
    assert flux.get(f"configmap/{name}", WORKERS)


def ready_pod(pod: dict[str, Any]) -> bool:
    conditions = {each["type"]: each["status"] for each in pod["status"]["conditions"]}
    return conditions.get("Ready") == "True"


def restarts(pod: dict[str, Any]) -> int:
    return int(pod["status"]["containerStatuses"][0]["restartCount"])


def test_the_sync_may_touch_neither_secrets_nor_other_namespaces(flux: Flux) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "stolen", "namespace": "nativelink"}}
    elsewhere = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "astray", "namespace": "default"}}
    for each in (secret, elsewhere):
        kustomization = yaml.safe_load((flux.tree / "kustomization.yaml").read_text())
        (flux.tree / "patches" / "more.yaml").write_text(yaml.safe_dump(each))
        kustomization["resources"].append("patches/more.yaml")
        (flux.tree / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        flux.site.commit(f"More than is allowed: {each['kind']}")
        flux.poke()
        flux.refused("ReconciliationFailed", f'User "system:serviceaccount:flux-system:nativelink-{NAME}" cannot')
        assert not flux.get(f"{each['kind']}/{each['metadata']['name']}", each["metadata"]["namespace"])
        flux.applied(flux.site.revert())


def test_a_suspended_sync_stays_suspended(flux: Flux, alerts: Alerts) -> None:
    kind = "kustomization.kustomize.toolkit.fluxcd.io"
    flux.where.run(
        "-n", "flux-system", "patch", kind, f"nativelink-{NAME}", "--type=merge", "-p", '{"spec":{"suspend":true}}'
    )
    done = flux.site.bootstrap()
    assert done.changed == 0, done.output
    assert flux.sync()["spec"]["suspend"] is True
    assert ", main (suspended)" in done.summary[NAME]
    flux.site.set(NAME, nativelink_worker_pools=[pool("kept", min_replicas=2)])
    flux.site.playbook("render")
    commit = flux.site.commit("Two workers")
    # docs/changes.md tells users to check in this way that the engine knows the new commit.
    seen = f"--for=jsonpath={{.status.artifact.revision}}=main@sha1:{commit}"
    flux.where.run("-n", "flux-system", "wait", f"gitrepository/nativelink-{NAME}", seen, f"--timeout={patient(60)}s")
    alerts.fires("GitOpsOutOfSync")  # after more than an interval
    assert flux.get("deployment/nativelink-worker-kept", WORKERS)["spec"]["replicas"] == 1

    # The summary tells users to run this command.
    (line,) = (line for line in done.summary[NAME].splitlines() if "resume it: " in line)
    command = shlex.split(line.partition("resume it: ")[2])
    subprocess.run([flux.where.kubectl, *command[1:]], check=True, capture_output=True, cwd=Path(__file__).parents[3])
    flux.applied(commit)
    assert flux.get("deployment/nativelink-worker-kept", WORKERS)["spec"]["replicas"] == 2


def test_untrusted_servers_and_credentials_are_refused(flux: Flux, tmp_path: Path) -> None:
    ssh = by_ssh(flux.server)
    https = {name: flux.site.hosts[NAME].get(name, "") for name in ssh}

    def connect(**variables: Any) -> None:
        flux.site.set(NAME, **variables)
        done = flux.site.playbook("connect")
        assert "suspended" not in done.summary[NAME]
        flux.poke()

    another, _ = certificate(tmp_path, flux.server.address)
    (tmp_path / "known_hosts").write_text(flux.server.wrong_known_hosts())
    connect(gitops_ca_file=str(another))
    flux.unreachable("x509")
    connect(**{**https, "gitops_password": "wrong"})
    flux.unreachable("authentication required")
    connect(**{**ssh, "gitops_known_hosts_file": str(tmp_path / "known_hosts")})
    flux.unreachable("knownhosts")

    connect(**ssh)
    flux.applied(flux.site.commit("By SSH"))
    assert flux.source()["spec"]["url"].startswith("ssh://")
    identity = flux.server.identity.read_text().splitlines()[1]
    assert identity not in flux.site.git("log", "--all", "--patch")


def test_the_cluster_matches_the_tree(flux: Flux) -> None:
    """Applying the tree once more, after all tests above, would change nothing."""
    try:
        flux.where.run("diff", "--server-side", "--force-conflicts", "--field-manager=looking", "-k", str(flux.tree))
    except ClusterError as error:
        pytest.fail(f"the tree differs from what runs: {error}")


def test_a_version_reaches_a_promoted_cluster_only_when_its_branch_moves(flux: Flux) -> None:
    """The cluster of the tests above follows main, and another entry of the inventory follows the branch prod.

    docs/upgrades.md describes the pattern. The other entry has namespaces of its own on the same cluster.
    """
    old, new = images.NATIVELINK_VERSIONS
    spaces = {"nativelink_namespace": "prod", "nativelink_workers_namespace": "prod-workers"}
    engine = {name: value for name, value in flux.site.hosts[NAME].items() if name.startswith("gitops_")}
    entry = {**SMALL, **spaces, **engine, "nativelink_worker_pools": [pool("default")], "gitops_revision": "prod"}

    def version(namespace: str) -> str:
        image = flux.get(CAS, namespace)["spec"]["template"]["spec"]["containers"][0]["image"]
        return str(image.rpartition(":")[2])

    def promote() -> None:
        flux.site.git("fetch", "--quiet", "origin")
        flux.site.git("push", "--quiet", "origin", "origin/main:refs/heads/prod")
        flux.poke("prod")

    def source() -> dict[str, Any]:
        return dict(flux.get("gitrepository/nativelink-prod", "flux-system")["status"])

    flux.site.add("prod", flux.where, **entry)
    flux.site.bootstrap("--limit", "prod")
    first = flux.site.commit("Another cluster")
    promote()
    until("the first tree of prod", lambda: bool(flux.get(CAS, "prod")), 40, flux.said)

    for name in (NAME, "prod"):
        flux.site.set(name, nativelink_version=old)
    flux.site.playbook("render")
    flux.site.commit(f"NativeLink {old}")
    flux.poke()
    until(f"{old} on the cluster that follows main", lambda: version("nativelink") == old, 60, flux.said)
    asked = flux.poke("prod")
    looked = "Flux to look at the branch prod again"
    until(looked, lambda: source()["lastHandledReconcileAt"] == asked, 60, flux.said)
    assert source()["artifact"]["revision"] == f"prod@sha1:{first}"
    assert version("prod") == new

    base = ("-e", "nativelink_base_revision=origin/prod")
    said = flux.site.playbook("render", "--check", "--limit", "prod", *base).summary["prod"]
    for line in ("CAS: its pods restart", "scheduler: restarts", "pool default: its workers are replaced"):
        assert line in said
    promote()
    until(f"{old} on prod", lambda: version("prod") == old, 60, flux.said)

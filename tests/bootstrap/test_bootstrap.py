"""The bootstrap as users run it: twice, with faults, on clusters that are down or hang, and killed at any point.

The locked Ansible and the newest one each have a fresh cluster. What kills or stops runs is on the locked one only.
"""

import base64
import json
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from testbed import cluster
from testbed.cluster import Cluster
from testkit import numbers
from testkit.inventories import LOCAL_PATH, NO_ADD_ONS
from testkit.playbooks import BIN, ROOT, Project, Run
from testkit.repository import git

NEWEST = ROOT / ".venv-newest" / "bin"
LOCKED_ONLY = pytest.mark.parametrize("story", ["locked"], indirect=True)
# The variables that a user would write for a cluster.
VARIABLES = {
    **LOCAL_PATH,
    "gitops_provider": "argocd",
    "gitops_repository": "https://git.example.com/platform/clusters.git",
    "nativelink_hostname": "nativelink.example.com",
    "nativelink_edge_tls_secret": "edge-tls",
    "nativelink_edge_client_ca_secret": "clients-ca",
    "nativelink_image_pull_secrets": ["mirror"],
    "nativelink_scheduler_backend": "redis",
    "nativelink_scheduler_replicas": 2,
    "nativelink_worker_pools": [{"name": "default"}, {"name": "large", "min_replicas": 1, "slots": 2}],
}


# Fields that the API server or a controller sets, so that they may differ between two runs.
VOLATILE = ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields", "ownerReferences")


def objects(where: Cluster, manager: str = "nativelink-gitops") -> dict[str, Any]:
    """Return the objects of our field manager, by kind, namespace and name, without fields that differ between runs."""
    kinds = where.run("api-resources", "--verbs=list", "-o", "name").split()
    kinds = sorted({kind for kind in kinds if not kind.startswith("events")})
    text = where.run("get", ",".join(kinds), "-A", "-o", "json", "--show-managed-fields", "--ignore-not-found")
    found: dict[str, Any] = {}
    for item in json.loads(text or '{"items": []}')["items"]:
        metadata = item["metadata"]
        fields = [entry["fieldsV1"] for entry in metadata.get("managedFields", ()) if entry["manager"] == manager]
        if not fields or "ttlSecondsAfterFinished" in item.get("spec", {}):  # this Job is removed when it has completed
            continue
        item.pop("status", None)
        if item["kind"] == "Secret":
            item["data"] = sorted(item.get("data", {}))
        for key in ("clusterIP", "clusterIPs", "healthCheckNodePort"):
            item.get("spec", {}).pop(key, None)
        for port in item.get("spec", {}).get("ports", ()) if item["kind"] == "Service" else ():
            port.pop("nodePort", None)
        for key in VOLATILE:
            metadata.pop(key, None)
        name = f"{item['kind']} {metadata.get('namespace', '')}/{metadata['name']}"
        found[name] = {"fields": fields, "object": item}
    return found


@dataclass
class Story:
    """A fresh cluster `alpha`, and its state after each of three runs: with --check, the first, and a second one."""

    project: Project
    where: Cluster
    check: Run
    checked: dict[str, Any]
    checked_files: dict[str, bytes]
    first: Run
    made: dict[str, Any]
    files: dict[str, tuple[int, bytes]]
    second: Run


@pytest.fixture(scope="module", params=["locked", "newest"])
def story(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    if request.param == "newest" and not (NEWEST / ".." / ".ready").exists():
        pytest.skip("the newest ansible-core needs Python 3.12 or newer (make newest)")
    folder = tmp_path_factory.mktemp(request.param)
    project = Project(folder, BIN if request.param == "locked" else NEWEST)
    with cluster.fresh(f"bootstrap-{request.param}") as where:
        project.add("alpha", where, **VARIABLES)
        git(folder, "init", "--quiet")
        git(folder, "add", "inventory")
        git(folder, "commit", "--quiet", "--message=inventory")
        # This records calls of Git before the real one.
        spy = folder / "bin/git"
        spy.parent.mkdir()
        spy.write_text(f'#!/bin/sh\necho "$@" >> {folder}/git-was-called\nexec "{shutil.which("git")}" "$@"\n')
        spy.chmod(0o755)
        check = project.run("--check")
        checked, checked_files = objects(where), project.tree()
        first = project.run()
        made, files = objects(where), project.files()
        yield Story(project, where, check, checked, checked_files, first, made, files, project.run())


@pytest.fixture(scope="module")
def bumpy() -> Iterator[Cluster]:
    """Return a second cluster, whose runs are killed, and which then hangs."""
    with cluster.fresh("bootstrap-bumpy") as where:
        yield where


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Return an empty project on the Ansible that runs the tests."""
    return Project(tmp_path)


def test_check_mode_reports_changes_without_making_them(story: Story) -> None:
    assert story.check.status == 0
    assert story.check.recap["alpha"]["changed"] >= 5
    assert "alpha: would change (" in story.check.summary["alpha"]
    assert story.checked == {}
    assert story.checked_files == {}


def test_bootstrap_provisions_the_cluster(story: Story) -> None:
    assert story.first.status == 0
    assert story.first.recap["alpha"]["failed"] == 0
    assert {
        "Namespace /nativelink",
        "Namespace /nativelink-workers",
        "Namespace /keda",
        "Secret nativelink/nativelink-redis",
        "StorageClass /local-path",
        "CustomResourceDefinition /scaledobjects.keda.sh",
        "Deployment keda/keda-operator",
        "CustomResourceDefinition /grpcroutes.gateway.networking.k8s.io",
        "GatewayClass /nativelink",
        "DaemonSet nativelink-node-agent/node-agent",
        "Application argocd/nativelink-alpha",
    } <= story.made.keys()


def test_the_password_of_redis_is_in_the_cluster_only(story: Story) -> None:
    get = ("-n", "nativelink", "get", "secret", "nativelink-redis", "-o")
    encoded = story.where.run(*get, "jsonpath={.data.password}").encode()
    files = [content for _, content in story.files.values()]
    assert any(b"nativelink-redis" in content for content in files)
    for password in (encoded, base64.b64decode(encoded)):
        assert len(password) >= 43
        assert not any(password in content for content in files)


def test_the_summary_lists_changes_and_next_steps(story: Story) -> None:
    said = story.first.summary["alpha"]
    assert said.startswith("alpha: changed (")
    for section in ("provisioned", "rendered", "connected", "next"):
        assert f"\n  {section}" in said
    assert "commit" in said
    assert "make the Secret nativelink/edge-tls: the certificate of the edge" in said
    for namespace in ("nativelink", "nativelink-workers"):
        assert f"make the Secret {namespace}/mirror: the credentials for pulling images" in said
    # Provisioning creates this one.
    assert "nativelink-redis" not in said


def test_a_second_run_changes_nothing_and_reports_that(story: Story) -> None:
    assert story.second.status == 0
    assert story.second.changed == 0
    assert story.second.summary["alpha"].startswith("alpha: nothing changed\n")
    assert story.project.files() == story.files
    assert objects(story.where) == story.made


def test_rendering_does_not_need_a_cluster(story: Story, project: Project) -> None:
    project.ansible = story.project.ansible
    project.add("beta", **VARIABLES)
    project.add("gamma", **VARIABLES)
    check = project.run("--check", "--diff", playbook="render")
    assert check.status == 0
    assert "+kind: StatefulSet\n" in check.output
    assert not project.trees.exists()
    run = project.run("--tags", "render", "--limit", "beta")
    assert (run.status, list(run.summary)) == (0, ["beta"])
    assert [path.name for path in project.trees.iterdir()] == ["beta"]
    both = project.run(playbook="render")
    assert both.status == 0
    assert both.summary["beta"].startswith("beta: nothing changed\n")
    assert both.summary["gamma"].startswith("gamma: changed (1 task)\n")


def test_ansible_never_commits_or_pushes(story: Story) -> None:
    called = (story.project.folder / "git-was-called").read_text()
    # It reads the committed tree to find changes that would break a running cluster, and commits that are not pushed.
    assert set(re.findall(r"^(?:-C \S+ |-\S+ )*(\S+)", called, re.MULTILINE)) == {"cat-file", "rev-list", "status"}
    assert git(story.project.folder, "log", "--format=%s") == "inventory\n"
    assert git(story.project.folder, "diff", "--cached", "--name-only") == ""


def exists(where: Cluster, path: str) -> Callable[[], bool]:
    """Return a function that returns True if the API server has the object at a path."""
    command = where.command("get", "--raw", path)
    return lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0


@LOCKED_ONLY
def test_killed_at_five_points_it_converges(story: Story, project: Project, bumpy: Cluster) -> None:
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
    assert project.tree() == story.project.tree()
    assert objects(bumpy) == story.made
    again = project.run()
    assert (again.status, again.changed) == (0, 0)


@pytest.mark.soak
@LOCKED_ONLY
def test_killed_at_random_points_it_converges(story: Story, tmp_path_factory: pytest.TempPathFactory) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    print(f"seed {seed}")
    took, killed = 60.0, 0  # an upper limit of what a run takes, until one has not been killed
    while killed < 20:
        with cluster.fresh("bootstrap-soak") as where:
            project = Project(tmp_path_factory.mktemp("soak"))
            project.add("alpha", where, **VARIABLES)
            moment = chance.uniform(0, took)
            started = time.monotonic()
            if not project.interrupt(lambda end=started + moment: time.monotonic() > end):
                took = time.monotonic() - started
                continue
            killed += 1
            print(f"{killed}: killed after {moment:.1f} s of {took:.1f} s")
            assert project.run().status == 0
            assert project.tree() == story.project.tree()
            assert objects(where) == story.made
            assert project.run().changed == 0


@LOCKED_ONLY
def test_dead_and_hanging_clusters_do_not_delay_others(story: Story, project: Project, bumpy: Cluster) -> None:
    """The last test, because it leaves other objects in the clusters."""
    for name, where in (("alive", story.where), ("dead", None), ("hanging", bumpy)):
        spaces = {"nativelink_namespace": "other", "nativelink_workers_namespace": "other-workers"}
        project.add(name, where, preflight_api_timeout=15, **LOCAL_PATH, **NO_ADD_ONS, **spaces)

    bumpy.pause()
    try:
        run = project.run()
        # If every cluster fails, there is still a summary.
        failed = project.run("--limit", "dead,hanging")
    finally:
        bumpy.resume()

    assert run.status == failed.status == 2
    assert [run.recap[name]["failed"] for name in ("alive", "dead", "hanging")] == [0, 1, 1]
    assert re.search(r"Make the namespaces\].*\nchanged: \[alive\](?s:.)*\nfatal: \[hanging\]", run.output)
    assert [path.name for path in project.trees.iterdir()] == ["alive"]
    assert story.where.run("get", "namespace", "other", "-o", "name") == "namespace/other\n"
    assert sorted(run.summary) == ["alive", "dead", "hanging"]
    assert sorted(failed.summary) == ["dead", "hanging"]
    assert run.summary["alive"].startswith("alive: changed (")
    for name in ("dead", "hanging"):
        assert run.summary[name].startswith(f"{name}: failed\n")
        assert "  failed       cluster_context: the API server https://127.0.0.1:" in run.summary[name]
    assert "did not answer within 15 s" in run.summary["hanging"]

    # The counter-run: when the cluster answers again, it is completed like the other.
    run = project.run("--limit", "alive,hanging")
    assert run.status == 0
    assert run.summary["alive"].startswith("alive: nothing changed\n")
    assert run.summary["hanging"].startswith("hanging: changed (")


@pytest.mark.bench
def test_seconds(rounds: int, tmp_path: Path) -> None:
    """The first run on a fresh cluster, and those after it. Pods do not really start, and images are not pulled."""
    print(f"\n{numbers.machine()}")
    project, seconds = Project(tmp_path), list[float]()
    with cluster.fresh("bootstrap-seconds") as where:
        project.add("alpha", where, **VARIABLES)
        for number in range(1 + rounds):
            began = time.monotonic()
            run = project.run()
            seconds.append(time.monotonic() - began)
            assert (run.status, bool(run.changed)) == (0, number == 0), run.output[-4000:]
    numbers.head("seconds")
    numbers.row("first run on a fresh cluster", seconds[:1])
    numbers.row("next run, which changes nothing", seconds[1:], 20)

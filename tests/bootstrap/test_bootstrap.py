"""The bootstrap from its first run to a run that changes nothing, on the locked Ansible and on the newest one."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from testbed import cluster
from testbed.cluster import Cluster
from testkit import numbers
from testkit.inventories import LOCAL_PATH
from testkit.playbooks import BIN, ROOT, Project, Run

from .conftest import objects

NEWEST = ROOT / ".venv-newest" / "bin"


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
        _git(project)
        check = project.run("--check")
        checked, checked_files = objects(where), project.tree()
        first = project.run()
        made, files = objects(where), project.files()
        yield Story(project, where, check, checked, checked_files, first, made, files, project.run())


# The variables that a user would write for a cluster.
VARIABLES = {
    **LOCAL_PATH,
    "gitops_provider": "argocd",
    "gitops_repository": "https://git.example.com/platform/clusters.git",
    "nativelink_hostname": "nativelink.example.com",
    "nativelink_edge_tls_secret": "edge-tls",
    "nativelink_image_pull_secrets": ["mirror"],
}


def _git(project: Project) -> None:
    """Make the project a Git repository with one commit, and put a git that records its calls before the real one."""

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=tests", "-c", "user.email=tests@example.com"]
        subprocess.run(["git", *identity, *arguments], cwd=project.folder, check=True, capture_output=True)

    git("init", "--initial-branch=main")
    git("add", "inventory")
    git("commit", "--message=inventory")
    spy = project.folder / "bin" / "git"
    spy.parent.mkdir()
    spy.write_text(f'#!/bin/sh\necho "$@" >> {project.folder}/git-was-called\nexec "{_which("git")}" "$@"\n')
    spy.chmod(0o755)


def _which(program: str) -> str:
    return next(
        str(Path(folder, program)) for folder in os.environ["PATH"].split(":") if Path(folder, program).exists()
    )


def test_check_mode_reports_changes_without_making_them(story: Story) -> None:
    assert story.check.status == 0
    assert story.check.recap["alpha"]["changed"] >= 5
    assert "alpha: would change (" in story.check.summary["alpha"]
    assert story.checked == {}
    assert story.checked_files == {}


def test_bootstrap_provisions_the_cluster(story: Story) -> None:
    assert story.first.status == 0
    assert story.first.recap["alpha"]["failed"] == 0
    for name in (
        "Namespace /nativelink",
        "Namespace /nativelink-workers",
        "Namespace /keda",
        "StorageClass /local-path",
        "CustomResourceDefinition /scaledobjects.keda.sh",
        "Deployment keda/keda-operator",
        "CustomResourceDefinition /grpcroutes.gateway.networking.k8s.io",
        "GatewayClass /nativelink",
        "DaemonSet nativelink-node-agent/node-agent",
        "Application argocd/nativelink-alpha",
    ):
        assert name in story.made


def test_bootstrap_renders_a_tree_that_the_api_server_accepts(story: Story) -> None:
    tree = story.project.trees / "alpha"
    assert (tree / "kustomization.yaml").is_file()
    assert (tree / "rendered" / "kustomization.yaml").is_file()
    command = story.where.command("apply", "--server-side", "--dry-run=server", "-k", str(tree))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "statefulset.apps/nativelink-cas serverside-applied (server dry run)" in done.stdout


def test_the_summary_lists_changes_and_next_steps(story: Story) -> None:
    said = story.first.summary["alpha"]
    assert said.startswith("alpha: changed (")
    for section in ("provisioned", "rendered", "connected", "next"):
        assert f"\n  {section}" in said
    assert "commit" in said
    assert "push" in said
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
    assert run.status == 0
    assert list(run.summary) == ["beta"]
    assert [path.name for path in project.trees.iterdir()] == ["beta"]
    both = project.run(playbook="render")
    assert both.status == 0
    assert both.recap["beta"]["changed"] == 0
    assert both.recap["gamma"]["changed"] == 1
    assert both.summary["beta"].startswith("beta: nothing changed\n")
    assert both.summary["gamma"].startswith("gamma: changed (1 task)\n")


def test_an_input_error_of_one_cluster_stops_the_run_before_it_changes_anything(story: Story, project: Project) -> None:
    project.ansible = story.project.ansible
    project.add("alpha", story.where, **VARIABLES, nativelink_cas_replicas=5, nativelink_namespace="elsewhere")
    project.add("delta", **VARIABLES, nativelink_scheduler_replicas=2, keda_versoin="2.21.0")
    before = objects(story.where)
    run = project.run()
    assert run.status == 2
    assert "delta: nativelink_scheduler_replicas: " in run.output
    assert "delta: keda_versoin: " in run.output
    assert "The inventory has faults; nothing was written or applied:" in run.output.partition("\nCLUSTERS ")[2]
    assert not project.trees.exists()
    assert objects(story.where) == before
    # The counter-run: without the error, the run of the same inventory writes files.
    project.add("delta", **VARIABLES)
    assert project.run("--tags", "render").status == 0
    assert sorted(path.name for path in project.trees.iterdir()) == ["alpha", "delta"]


def test_ansible_never_commits_or_pushes(story: Story) -> None:
    called = (story.project.folder / "git-was-called").read_text()
    # It reads the committed tree to find changes that would break a running cluster, and commits that are not pushed.
    assert set(re.findall(r"^(?:-C \S+ |-\S+ )*(\S+)", called, re.MULTILINE)) == {"cat-file", "rev-list", "status"}
    log = subprocess.run(
        ["git", "log", "--format=%s"], cwd=story.project.folder, capture_output=True, text=True, check=True
    )
    assert log.stdout == "inventory\n"
    staged = subprocess.run(["git", "diff", "--cached", "--quiet"], cwd=story.project.folder, check=False)
    assert staged.returncode == 0


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

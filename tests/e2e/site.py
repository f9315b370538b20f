"""A user's checkout for clusters with a real node: an inventory, the trees of its clusters, and Git.

Usage::

    site = Site.make(tmp_path / "checkout")
    site.add("prod", cluster, **SMALL, gitops_provider="flux", gitops_repository=server.https_url)
    assert site.run("bootstrap").status == 0       # the real playbook: any of playbooks/
    site.publish(server)                           # the first push; site.commit("...") pushes from then on
    site.set("prod", nativelink_cas_replicas=2)    # changes the inventory
    site.run("render"); site.commit("Two shards")

Credentials do not belong in the inventory, because it is committed. The inventory names their files, or
reads the environment.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, Self

from testbed import images
from tests.e2e.git_server import BRANCH, GitServer
from tests.inventories import LOCAL_PATH, NO_ADD_ONS
from tests.playbooks import Project, Run

# A smaller share of the processors starves them while other tests run.
_BUSY = {"requests": {"cpu": "100m", "memory": "32Mi"}, "limits": {"memory": "256Mi"}}
SMALL: dict[str, Any] = {
    **LOCAL_PATH,
    "nativelink_cas_replicas": 1,
    "nativelink_cas_volume_size": "1Gi",
    "nativelink_cas_resources": _BUSY,
    "nativelink_scheduler_resources": _BUSY,
    "nativelink_worker_image": images.DEBIAN,
    "nativelink_worker_access": "network_policy",  # test_isolation.py has the agent of the nodes
    **NO_ADD_ONS,  # the tests of KEDA, of the edge and of the node agent switch them on
}
"""The variables of a cluster that fits a test machine, with the images of a real node."""


def pool(name: str, **more: Any) -> dict[str, Any]:
    """Return a worker pool of one small pod."""
    # The disk of the machine may be smaller than the scratch.
    requests = {"cpu": "10m", "memory": "32Mi", "ephemeral-storage": "0"}
    resources = {"requests": requests, "limits": {"memory": "256Mi"}}
    properties = {"OSFamily": "Linux", "pool": name}
    sizes = {"scratch_size": "5Gi", "slots": 1, "longest_action": "1m", "min_replicas": 1, "max_replicas": 2}
    return {"name": name, "platform_properties": properties, "resources": resources, **sizes, **more}


def by_ssh(server: GitServer) -> dict[str, Any]:
    """Return variables of a cluster that follows a server over SSH, in place of those for HTTPS."""
    return {
        "gitops_repository": server.ssh_url,
        "gitops_ssh_private_key_file": str(server.identity),
        "gitops_known_hosts_file": str(server.known_hosts),
        **dict.fromkeys(("gitops_username", "gitops_password", "gitops_ca_file"), ""),
    }


class Site(Project):
    """A checkout whose inventory, trees and patches are committed and pushed."""

    @classmethod
    def make(cls, folder: Path) -> Self:
        """Make a checkout whose inventory has no cluster yet."""
        site = cls(folder)
        subprocess.run(["git", "init", "--quiet", f"--initial-branch={BRANCH}", folder], check=True)
        (folder / ".git" / "info" / "exclude").write_text("run.log\n")
        return site

    def git(self, *arguments: str) -> str:
        """Run Git, and return its stripped output. Raise CalledProcessError if Git fails."""
        who = ("-c", "user.name=tests", "-c", "user.email=tests@example.com")
        command = ["git", "-C", str(self.folder), *who, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def bootstrap(self, *arguments: str) -> Run:
        """Run playbooks/bootstrap.yml, and raise AssertionError if it fails."""
        return self.playbook("bootstrap", *arguments)

    def playbook(self, name: str, *arguments: str) -> Run:
        """Run a playbook of playbooks/, and raise AssertionError with its output if it fails."""
        done = self.run(*arguments, playbook=name)
        assert done.status == 0, done.output
        return done

    def tree_of(self, name: str) -> Path:
        """Return the folder of a cluster's tree."""
        return self.trees / name

    def publish(self, server: GitServer) -> str:
        """Commit and push everything to a server for the first time, and return the commit's ID."""
        self.git("remote", "add", "origin", str(server.bare))
        commit = self.commit("The first tree")
        self.git("branch", "--set-upstream-to", f"origin/{BRANCH}")
        return commit

    def commit(self, message: str) -> str:
        """Commit and push all changes in the work tree, and return the commit's ID."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "-m", message)
        return self.push()

    def revert(self, *commits: str) -> str:
        """Revert commits, by default the last one, push, and return the new commit's ID."""
        self.git("revert", "--no-edit", *(commits or ("HEAD",)))
        return self.push()

    def push(self) -> str:
        """Push the branch, and return the ID of its last commit."""
        self.git("push", "--quiet", "origin", BRANCH)
        return self.git("rev-parse", "HEAD")

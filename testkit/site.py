"""A user's checkout for clusters with a real node: an inventory, the trees of its clusters, and Git.

Credentials do not belong in the inventory, because it is committed. The inventory names their files, or
reads the environment.
"""

from pathlib import Path
from typing import Any, Self

from testbed import components
from testkit.git_server import BRANCH, GitServer
from testkit.inventories import LOCAL_PATH, NO_ADD_ONS
from testkit.playbooks import Project, Run
from testkit.repository import git

SMALL: dict[str, Any] = {
    **LOCAL_PATH,
    "nativelink_cas_replicas": 1,
    "nativelink_cas_volume_size": "1Gi",
    # Requests of processor time are shares of it. With less, a busy machine would let clients wait for half a minute.
    "nativelink_cas_resources": {"requests": {"cpu": "100m", "memory": "32Mi"}, "limits": {"memory": "256Mi"}},
    "nativelink_scheduler_resources": {"requests": {"cpu": "100m", "memory": "32Mi"}, "limits": {"memory": "256Mi"}},
    "nativelink_worker_image": components.reference("debian"),
    "nativelink_worker_access": "network_policy",  # nodes/test_isolation.py has the agent of the nodes
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


class Site(Project):
    """A checkout whose inventory, trees and patches are committed and pushed."""

    @classmethod
    def make(cls, folder: Path) -> Self:
        """Make a checkout whose inventory has no cluster yet."""
        site = cls(folder)
        folder.mkdir(parents=True, exist_ok=True)
        site.git("init", "--quiet", f"--initial-branch={BRANCH}")
        (folder / ".git" / "info" / "exclude").write_text("run.log\n")
        return site

    def git(self, *arguments: str) -> str:
        """Run Git, and return its stripped output. Raise CalledProcessError if Git fails."""
        return git(self.folder, *arguments).strip()

    def playbook(self, name: str, *arguments: str) -> Run:
        """Run a playbook of playbooks/, and raise AssertionError with its output if it fails."""
        done = self.run(*arguments, playbook=name)
        assert done.status == 0, done.output
        return done

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
        return self._push()

    def revert(self, *commits: str) -> str:
        """Revert commits, by default the last one, push, and return the new commit's ID."""
        self.git("revert", "--no-edit", *(commits or ("HEAD",)))
        return self._push()

    def _push(self) -> str:
        self.git("push", "--quiet", "origin", BRANCH)
        return self.git("rev-parse", "HEAD")

"""A real moon as a client of the edge: its tasks run on this machine, and their results go to the remote cache."""

import shutil
from pathlib import Path

from testbed import npm
from testkit.edge import Edge
from testkit.repository import git

OURS = """
projects: [app]
telemetry: false
"""
# moon connects in the background, and neither reads nor writes the results of tasks that end before that.
TASKS = """
tasks:
  connect: {command: sleep 4, options: {cache: false}}
  build: {command: cp in.txt out.txt, deps: ['~:connect'], inputs: [in.txt], outputs: [out.txt]}
"""


class Moon:
    """A moon with its own workspace, which needs a Git repository with a commit."""

    def __init__(self, edge: Edge, folder: Path) -> None:
        self.edge, self.home, self.workspace = edge, folder / "home", folder / "workspace"
        for name in ("app", ".moon"):
            (self.workspace / name).mkdir(parents=True)
        remote = (edge.client_files(self.workspace) / "moon/workspace.yml").read_text()
        (self.workspace / ".moon/workspace.yml").write_text(remote + OURS)
        (self.workspace / "app/moon.yml").write_text(TASKS)
        git(self.workspace, "init")
        git(self.workspace, "commit", "--allow-empty", "--message=one")

    def build(self, word: str, *, certificate: str = "", token: str = "") -> str:
        """Copy a file with a word as a task, with a certificate (of `SANS`) or a token, and return moon's output.

        Results on this machine are removed before. Raise AssertionError with the output if the task fails.
        """
        source, copied = (self.workspace / "app" / name for name in ("in.txt", "out.txt"))
        shutil.rmtree(self.workspace / ".moon" / "cache", ignore_errors=True)
        copied.unlink(missing_ok=True)
        source.write_text(word)
        identity = {"MOON_REMOTE_AUTH_TOKEN": "NATIVELINK_TOKEN", "NATIVELINK_TOKEN": token.removeprefix("Bearer ")}
        if certificate:
            self.edge.client_files(self.workspace, certificate)
            files = {"CA_CERT": "ca.crt", "CLIENT_CERT": "client.crt", "CLIENT_KEY": "client.key"}
            identity = {f"MOON_REMOTE_MTLS_{name}": f"nativelink/{file}" for name, file in files.items()}
        moon = (npm.program("moon"), "run", "app:build")
        code, said = self.edge.tool(*moon, cwd=self.workspace, HOME=str(self.home), CI="true", **identity)
        assert (code, copied.exists() and copied.read_text()) == (0, word), said
        return said

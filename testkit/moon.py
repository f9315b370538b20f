"""A real moon as a client of the edge: its tasks run on this machine, and their results go to the remote cache."""

import shutil
from pathlib import Path

from testbed import npm
from testkit.edge import HOST, Edge
from testkit.repository import git

# moon connects in the background, and neither reads nor writes the results of tasks that end before that.
FILES = {
    ".moon/workspace.yml": f"""
projects: [app]
telemetry: false
remote:
  host: grpcs://{HOST}
  cache: {{instanceName: main, compression: zstd}}
  tls: {{cert: .moon/ca.crt}}
""",
    "app/moon.yml": """
tasks:
  connect: {command: sleep 4, options: {cache: false}}
  build: {command: cp in.txt out.txt, deps: ['~:connect'], inputs: [in.txt], outputs: [out.txt]}
""",
}


class Moon:
    """A moon with its own workspace, which needs a Git repository with a commit."""

    def __init__(self, edge: Edge, folder: Path) -> None:
        self.edge, self.home, self.workspace = edge, folder / "home", folder / "workspace"
        for name, text in FILES.items():
            path = self.workspace / name
            path.parent.mkdir(parents=True)
            path.write_text(text)
        shutil.copy(edge.certificates / "servers.crt", self.workspace / ".moon" / "ca.crt")
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
        file = str(self.edge.certificates / f"{certificate}.pem")
        identity = {"MOON_REMOTE_AUTH_TOKEN": "TOKEN", "TOKEN": token.removeprefix("Bearer ")}
        if certificate:
            identity = {f"MOON_REMOTE_MTLS_CLIENT_{what}": file for what in ("CERT", "KEY")}
            identity["MOON_REMOTE_MTLS_CA_CERT"] = ".moon/ca.crt"
        moon = (npm.program("moon"), "run", "app:build")
        code, said = self.edge.tool(*moon, cwd=self.workspace, HOME=str(self.home), **identity)
        assert (code, copied.exists() and copied.read_text()) == (0, word), said
        return said

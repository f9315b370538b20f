"""A real Pants that runs its processes remotely, through the edge and with a token: it has no client certificates."""

import shutil
import subprocess
from functools import cache as remembered
from pathlib import Path

from testbed import build, cache
from testkit.edge import Edge
from testkit.repository import git

# The newest Pants on PyPI runs on no newer Python.
PYTHON = "python3.9"
REQUIREMENTS = Path(build.__file__).with_name("pants-requirements.txt")
OURS = """
[GLOBAL]
pants_version = "2.17.1"
backend_packages = ["pants.backend.shell"]
pantsd = false
watch_filesystem = false
dynamic_ui = false
local_cache = false

[anonymous-telemetry]
enabled = false

[shell-setup]
executable_search_paths = ["/usr/bin", "/bin"]
"""


@remembered
def python() -> str:
    """Return the path of a Python that runs Pants, or "" if this machine has none."""
    if not shutil.which(PYTHON):
        return ""
    command = (PYTHON, "-c", "import sys; print(sys.executable)")  # that on PATH may be a script of pyenv
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _install(draft: Path) -> None:
    cache.say(f"downloading the wheels of {REQUIREMENTS.name}")
    pip = (python(), "-m", "pip", "install", "--quiet", "--no-compile", "--no-deps", "--require-hashes")
    build.run(*pip, "--only-binary", ":all:", "--target", draft, "-r", REQUIREMENTS, pauses=build.DOWNLOAD)


class Pants:
    """A Pants with its own workspace, which has the targets of a BUILD file."""

    def __init__(self, edge: Edge, folder: Path, token: str, targets: str) -> None:
        self.edge, self.home, self.workspace = edge, folder / "home", folder / "workspace"
        self.workspace.mkdir()
        edge.client_files(self.workspace, token=token)
        (self.workspace / "pants.toml").write_text(OURS)
        (self.workspace / "BUILD").write_text(targets)
        git(self.workspace, "init")

    def run(self, target: str) -> tuple[int, str]:
        """Run a ``shell_command``, whose outputs are then in dist/codegen. Return the exit code and what Pants said."""
        folder = cache.root() / "wheels" / f"pants-{cache.digest(REQUIREMENTS.read_bytes())}"
        wheels = cache.made(folder, _install)
        pants = (python(), wheels / "bin/pants", "--pants-config-files=nativelink/pants.toml")
        return self.edge.tool(
            *pants, "export-codegen", target, cwd=self.workspace, HOME=str(self.home), PYTHONPATH=str(wheels)
        )

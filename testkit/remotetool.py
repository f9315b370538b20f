"""remotetool and rexec of Bazel's SDKs for the Remote Execution API, real clients of the edge."""

import tempfile
from pathlib import Path

from testbed import build
from testkit.edge import Edge

POOL = 'platform {properties {name: "pool" value: "default"}}'


def action(folder: Path, script: str) -> Path:
    """Write an action that runs a script, whose output is ``out.txt``, into a folder, and return the folder."""
    command = f'arguments: ["/bin/sh", "-c", "{script}"] output_paths: "out.txt" {POOL}'
    (folder / "input").mkdir(parents=True)
    (folder / "cmd.textproto").write_text(command)
    (folder / "ac.textproto").write_text(POOL)
    return folder


def run(edge: Edge, certificate: str, operation: str, **options: str | Path) -> tuple[int, str]:
    """Run an operation with a certificate (of `SANS`). Return the exit code and what remotetool said."""
    return _run("remotetool", edge, certificate, operation=operation, **options)


def execute(edge: Edge, certificate: str, folder: Path, script: str) -> tuple[int, str]:
    """Run a script with rexec, whose output ``out.txt`` comes into a folder. Return the exit code and what it said.

    The exit code is 0 for an action that fails, too.
    """
    options = {"exec_root": folder, "output_files": "out.txt", "platform": "pool=default"}
    return _run("rexec", edge, certificate, "--", "/bin/sh", "-c", script, **options)


def _run(tool: str, edge: Edge, certificate: str, *command: str, **options: str | Path) -> tuple[int, str]:
    with tempfile.TemporaryDirectory() as folder:
        script = edge.client_files(Path(folder), certificate) / "remotetool.sh"
        flags = (f"--{name}={value}" for name, value in options.items())
        return edge.tool("sh", script, *flags, *command, cwd=Path(folder), CLIENT=str(build.program(tool)))

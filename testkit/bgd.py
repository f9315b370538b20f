"""bgd of BuildGrid, a real client of the edge. Its exit code is 0 for an action that fails, too."""

import platform
import sys
from pathlib import Path

from testbed import build
from testkit.edge import HOST, Edge

PROGRAM = (sys.executable, "-c", "from buildgrid.server.app import cli; cli()")


def execute(edge: Edge, certificate: str, folder: Path, script: str) -> tuple[int, str, Path]:
    """Run a script as an action with a certificate (of `SANS`), in the pool ``default``.

    Return the exit code, what bgd said, and the script's output ``out.txt``, which exists if the action has made it.
    """
    made, file = folder / "made", edge.certificates / f"{certificate}.pem"
    for each in (folder / "input", made):
        each.mkdir(parents=True)
    command = folder / "input" / "run.sh"
    command.write_text(f"#!/bin/sh\n{script}\n")  # bgd would take the arguments of a shell for the names of files
    command.chmod(0o755)
    server = ("--remote", f"https://{HOST}:443", "--server-cert", edge.certificates / "servers.crt")
    identity = ("--client-cert", file, "--client-key", file, "--instance-name", "main")
    action = ("--output-file", "out.txt", "--output-directory", made, "-p", "pool", "default", folder / "input")
    wheels = str(build.wheels("bgd", platform.python_version()))
    options = (*server, *identity, "command", "--enable-action-cache", *action, "./run.sh")
    return *edge.tool(*PROGRAM, "execute", *options, cwd=folder, PYTHONPATH=wheels), made / "out.txt"

"""Namespaces of its own for a Python process: network, mounts and processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# However this process ends, all that it started ends with it.
_ENTER = ["setpriv", "--pdeathsig=KILL", "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]
_ENTER += ["--mount-proc"]
_AS_USER = ["--user", "--map-root-user"]


class NamespaceError(Exception):
    """This machine does not allow them; the message says what it takes."""


def check() -> None:
    """NamespaceError where there can be none."""
    _enter()


def _enter() -> list[str]:
    for command in (_ENTER, [*_ENTER, *_AS_USER]):
        try:
            if not subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
                return command
        except FileNotFoundError:
            break
    raise NamespaceError("it takes Linux with util-linux, and root or a kernel that allows user namespaces")


def run(*arguments: str) -> int:
    """The status of Python with these arguments, in namespaces that end with it."""
    paths = [str(ROOT), str(ROOT / "playbooks/collections")]  # neither is installed as a package
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    # The shell is their first process, and collects what others leave behind: Bazel waits for its server to be gone.
    command = [*_enter(), "sh", "-c", '"$@"; exit $?', "sh", sys.executable, *arguments]
    return subprocess.run(command, env=environment, check=False).returncode

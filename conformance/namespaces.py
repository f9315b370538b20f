"""Separate namespaces for a Python process: network, mounts and processes."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Everything that this process started ends with it, even if it is killed.
_ENTER = ["setpriv", "--pdeathsig=KILL", "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]
_ENTER += ["--mount-proc"]
_AS_USER = ["--user", "--map-root-user"]
WITHOUT_USERS = "isolation needs root"  # why pods whose actions have users of their own do not run


class NamespaceError(Exception):
    """This machine does not allow namespaces. The message says what they need."""


def entering() -> list[str]:
    """Return the words that run a command in new namespaces. NamespaceError if this machine does not allow them."""
    for command in (_ENTER, [*_ENTER, *_AS_USER]):
        try:
            if not subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
                return command
        except FileNotFoundError:
            break
    raise NamespaceError("the run needs Linux with util-linux, and either root or a kernel that allows user namespaces")


def has_users() -> bool:
    """Return True if this process may take other users, which it may not in a namespace that was made without root."""
    return sum(int(line.split()[2]) for line in Path("/proc/self/uid_map").read_text().splitlines()) > 1


def run(enter: list[str], *arguments: str) -> int:
    """Run Python in the namespaces of ``entering``, which end with it, and return its status."""
    paths = [str(ROOT), str(ROOT / ".ansible/collections")]  # the collection and this package are not installed
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    # The first process is a shell, which collects orphans. Bazel waits until its server is gone.
    command = [*enter, "sh", "-c", '"$@"; exit $?', "sh", sys.executable, *arguments]
    return subprocess.run(command, env=environment, check=False).returncode

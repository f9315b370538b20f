"""The eBPF program of role low_latency, compiled by Debian's clang to the same bytes each time.

The compiler has its version in the name of its package, so that another release of Debian compiles the same.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from testbed import build, debian

SOURCE = Path(__file__).parents[1] / "roles/low_latency/files/tcp_nodelay.c"
OBJECT = SOURCE.with_suffix(".o")
_CLANG = "clang-19"


def compiled(source: Path = SOURCE) -> bytes:
    """The object file of a program. ``build.BuildError`` if it can't be had."""
    root = debian.root(_CLANG)
    libraries = root / "usr/lib/x86_64-linux-gnu"
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "object"
        # Version 2 of the instructions is older than what the program needs of the kernel.
        command = [root / "usr/bin" / _CLANG, "-target", "bpfel", "-mcpu=v2", "-O2", "-Wall", "-Wextra", "-Werror"]
        command += ["-nostdinc", "-isystem", root / "usr/include", "-isystem", root / "usr/include/x86_64-linux-gnu"]
        # Neither the compiler's version nor a folder's name gets into the object.
        command += ["-Qn", "-c", source.name, "-o", target]
        environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
        done = subprocess.run(command, cwd=source.parent, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise build.BuildError(f"compiling {source.name} failed: {done.stderr.strip()[-2000:]}")
        return target.read_bytes()

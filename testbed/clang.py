"""Debian's clang and lld, which make the same bytes each time.

The names of their packages contain the version, so that another release of Debian makes the same.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from testbed import build, debian


def compiled(source: Path, *options: str) -> bytes:
    """Compile a C file with these options, and return the result. ``build.BuildError`` if that fails."""
    root = debian.root("clang-19", "lld-19")
    llvm, local = root / "usr/lib/llvm-19", "x86_64-linux-gnu"
    includes = [llvm / "lib/clang/19/include", root / "usr/include", root / "usr/include" / local]
    # -Qn: the result then does not contain the compiler's version.
    command = [root / "usr/bin/clang-19", "-Qn", "-Wall", "-Wextra", "-Werror", "-nostdinc"]
    command += [f"-isystem{folder}" for folder in includes]
    environment = {**os.environ, "LD_LIBRARY_PATH": f"{root}/usr/lib/{local}:{llvm}/lib"}
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "result"
        # The name of a file in this folder, so that the result does not contain the folder's either.
        command += [*options, "-o", target, source.name]
        done = subprocess.run(command, cwd=source.parent, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise build.BuildError(f"compiling {source.name} failed: {done.stderr.strip()[-2000:]}")
        return target.read_bytes()

"""The eBPF programs of role node_agent, which Debian's clang compiles to the same bytes each time.

The name of the compiler's package contains its version, so that another release of Debian compiles the same.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from testbed import build, debian

SOURCES = sorted((Path(__file__).parents[1] / "roles/node_agent/files").glob("*.c"))
_CLANG = "clang-19"


def compiled(source: Path) -> bytes:
    """Compile a program, and return its object file. ``build.BuildError`` if that fails."""
    root = debian.root(_CLANG)
    libraries = root / "usr/lib/x86_64-linux-gnu"
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "object"
        # Every kernel that has what the programs need also has version 2 of the instructions.
        command = [root / "usr/bin" / _CLANG, "-target", "bpfel", "-mcpu=v2", "-O2", "-Wall", "-Wextra", "-Werror"]
        command += ["-nostdinc", "-isystem", root / "usr/include", "-isystem", root / "usr/include/x86_64-linux-gnu"]
        # The object then contains neither the compiler's version nor the name of a folder.
        command += ["-Qn", "-c", source.name, "-o", target]
        environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
        done = subprocess.run(command, cwd=source.parent, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise build.BuildError(f"compiling {source.name} failed: {done.stderr.strip()[-2000:]}")
        return target.read_bytes()


def write() -> None:
    """Compile all programs, and write their object files beside them."""
    for source in SOURCES:
        source.with_suffix(".o").write_bytes(compiled(source))

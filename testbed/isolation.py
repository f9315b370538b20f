"""The program of isolated workers, for both architectures. Debian's clang and lld build the same bytes each time.

It has no C library, so that it runs in every image.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from testbed import build, debian

FOLDER = Path(__file__).parents[1] / "roles/nativelink/files/isolation"
TARGETS = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}
_COMPILER, _LINKER = "clang-19", "lld-19"


def compiled(architecture: str) -> bytes:
    """Build the program for an architecture, and return it. ``build.BuildError`` if that fails."""
    root = debian.root(_COMPILER, _LINKER)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / architecture
        command = [root / "usr/bin" / _COMPILER, "-target", TARGETS[architecture], "-Os", "-Wall", "-Wextra", "-Werror"]
        command += ["-ffreestanding", "-fno-stack-protector", "-fno-pic", "-static", "-nostdlib"]
        command += [f"--ld-path={root}/usr/lib/llvm-19/bin/ld.lld", "-Wl,--build-id=none,--strip-all"]
        command += ["-nostdinc", "-isystem", root / "usr/lib/llvm-19/lib/clang/19/include"]
        command += ["-isystem", root / "usr/include", "-isystem", root / "usr/include/x86_64-linux-gnu"]
        command += ["-Qn", "-o", target, "isolate.c"]
        libraries = [root / "usr/lib/x86_64-linux-gnu", root / "usr/lib/llvm-19/lib"]
        environment = {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries))}
        done = subprocess.run(command, cwd=FOLDER, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise build.BuildError(f"building isolate.c for {architecture} failed: {done.stderr.strip()[-2000:]}")
        return target.read_bytes()

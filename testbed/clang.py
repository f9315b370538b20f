"""What is compiled from C and committed, with Debian's clang and lld, which make the same bytes each time.

The names of their packages contain the version, so that another release of Debian makes the same.
"""

import os
import tempfile
from pathlib import Path

from testbed import build, debian

_ROLES = Path(__file__).parents[1] / "roles"
# The eBPF programs of role node_agent. Each object file is beside its source.
BPF = sorted((_ROLES / "node_agent/files").glob("*.c"))
# The program of isolated workers. It has no C library, so that it runs in every image.
ISOLATION = _ROLES / "nativelink/files/isolation"
TARGETS = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}
_ALONE = ("-ffreestanding", "-fno-stack-protector", "-fno-pic", "-static", "-nostdlib")
_LINKED = ("-fuse-ld=lld", "-Wl,--build-id=none,--strip-all")


def _compiled(source: Path, *options: str) -> bytes:
    """Compile a C file with these options, and return the result. ``build.BuildError`` if that fails."""
    root = debian.root("clang-19", "lld-19")
    llvm, local = root / "usr/lib/llvm-19", "x86_64-linux-gnu"
    includes = [llvm / "lib/clang/19/include", root / "usr/include", root / "usr/include" / local]
    # -Qn: the result then does not contain the compiler's version.
    command: list[str | Path] = [root / "usr/bin/clang-19", "-Qn", "-Wall", "-Wextra", "-Werror", "-nostdinc"]
    command += [f"-isystem{folder}" for folder in includes]
    environment = {**os.environ, "LD_LIBRARY_PATH": f"{root}/usr/lib/{local}:{llvm}/lib"}
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "result"
        # The name of a file in this folder, so that the result does not contain the folder's either.
        command += [*options, "-o", target, source.name]
        build.run(*command, env=environment, cwd=source.parent)
        return target.read_bytes()


def bpf(source: Path) -> bytes:
    """Compile an eBPF program, and return its object file. ``build.BuildError`` if that fails."""
    # Every kernel that has what the programs need also has version 2 of the instructions.
    return _compiled(source, "-target", "bpfel", "-mcpu=v2", "-O2", "-c")


def isolation(architecture: str) -> bytes:
    """Build the program of isolated workers for an architecture. ``build.BuildError`` if that fails."""
    return _compiled(ISOLATION / "isolate.c", "-target", TARGETS[architecture], "-Os", *_ALONE, *_LINKED)

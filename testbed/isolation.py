"""The program of isolated workers, for both architectures. It has no C library, so that it runs in every image."""

from __future__ import annotations

from pathlib import Path

from testbed import clang

FOLDER = Path(__file__).parents[1] / "roles/nativelink/files/isolation"
TARGETS = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}
_ALONE = ("-ffreestanding", "-fno-stack-protector", "-fno-pic", "-static", "-nostdlib")
_LINKED = ("-fuse-ld=lld", "-Wl,--build-id=none,--strip-all")


def compiled(architecture: str) -> bytes:
    """Build the program for an architecture, and return it. ``build.BuildError`` if that fails."""
    return clang.compiled(FOLDER / "isolate.c", "-target", TARGETS[architecture], "-Os", *_ALONE, *_LINKED)

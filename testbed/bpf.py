"""The eBPF programs of role node_agent."""

from __future__ import annotations

from pathlib import Path

from testbed import clang

SOURCES = sorted((Path(__file__).parents[1] / "roles/node_agent/files").glob("*.c"))


def compiled(source: Path) -> bytes:
    """Compile a program, and return its object file. ``build.BuildError`` if that fails."""
    # Every kernel that has what the programs need also has version 2 of the instructions.
    return clang.compiled(source, "-target", "bpfel", "-mcpu=v2", "-O2", "-c")


def write() -> None:
    """Compile all programs, and write their object files beside them."""
    for source in SOURCES:
        source.with_suffix(".o").write_bytes(compiled(source))

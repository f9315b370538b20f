"""Starts a part that measures farms of processes of a real NativeLink, in namespaces of its own."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from conformance import namespaces
from conformance.plan import Plan
from conformance.subject import SubjectError, subject
from conformance.tools import Tools


def parser(part: str, description: str | None) -> argparse.ArgumentParser:
    """Return the parser of a part's arguments, which takes the FILE of a NativeLink."""
    made = argparse.ArgumentParser(prog=f"python -m bench {part}", description=description)
    made.add_argument("file", nargs="?", type=Path, default=os.environ.get("NATIVELINK"), metavar="FILE")
    return made


def run(part: str, file: Path | None, only: str = "") -> int:
    """Run ``bench.PART --inside`` in namespaces, and return its status; 2 without a NativeLink or namespaces."""
    if not file:
        print("not measured: it needs a real NativeLink. Run make bench NATIVELINK=FILE (docs/conformance.md)")
        return 0
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        (folder / "subject").mkdir()
        namespaces.check()
        found = subject(Path(file), folder / "subject")
        plan = Plan(folder, (found,), Tools.made(folder, clients=True), (), Path(), 0, only)
        return namespaces.run("-m", f"bench.{part}", "--inside", str(plan.write()))
    except (SubjectError, namespaces.NamespaceError) as error:
        print(f"not measured: {error}", file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(folder, ignore_errors=True)

"""Run the rendered configurations on a real NativeLink: ``python -m conformance FILE…``.

A FILE is a binary of NativeLink, or a tarball that `docker save` wrote. See docs/conformance.md.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from conformance import namespaces
from conformance.namespaces import ROOT, NamespaceError
from conformance.plan import PARTS, Plan
from conformance.subject import Subject, SubjectError, subject
from conformance.tools import Tools
from testbed.build import BuildError
from testbed.images import NATIVELINK, NATIVELINK_VERSIONS

INVENTORIES = 60
_WITHOUT = """\
conformance: no NativeLink to test. Run make conformance NATIVELINK=FILE, or python -m conformance FILE…
A FILE is an executable of NativeLink, or its image as docker save writes it. To get the official image with Docker:

    docker pull {image}:{version}
    docker save {image}:{version} -o nativelink-{version}.tar
    make conformance NATIVELINK=nativelink-{version}.tar

Several files, separated by spaces, are tested one after another. Versions: {versions}."""


def main(arguments: list[str]) -> int:
    """Return 1 if a check failed, and 2 without a NativeLink to test or without the privileges that the run needs."""
    parser = argparse.ArgumentParser(prog="python -m conformance", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="a binary, or a tarball of docker save")
    parser.add_argument("--part", choices=PARTS, action="append", help="run only that part (default: all)")
    parser.add_argument(
        "--inventories",
        type=int,
        default=INVENTORIES,
        metavar="N",
        help="number of generated inventories (default: %(default)s)",
    )
    parser.add_argument(
        "--clusters", type=Path, default=ROOT / "clusters", metavar="FOLDER", help="folder of the committed trees"
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help="run only the checks of a farm whose names, or that of the farm, contain TEXT",
    )
    given = parser.parse_args(arguments)
    if not given.files:
        versions = " and ".join(NATIVELINK_VERSIONS)
        print(_WITHOUT.format(image=NATIVELINK, version=NATIVELINK_VERSIONS[-1], versions=versions), file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder = Path(tempfile.mkdtemp(prefix="conformance-"))
    status = 2
    try:
        namespaces.check()
        subjects = [_subject(file, folder / f"subject-{number}") for number, file in enumerate(given.files)]
        for each in subjects:
            note = ", a stand-in, which shows nothing about NativeLink itself" if each.stand_in else ""
            print(f"NativeLink {each.title}{note}: {each.binary}", flush=True)
        parts = tuple(given.part or PARTS)
        tools = Tools.made(folder, clients="farm" in parts)
        plan = Plan(folder, tuple(subjects), tools, parts, given.clusters, given.inventories, given.only)
        status = namespaces.run("-m", "conformance.inside", str(plan.write()))
    except (SubjectError, BuildError, NamespaceError) as error:
        print(f"conformance: {error}", file=sys.stderr)
    finally:
        if status == 1:
            print(f"configurations and logs: {folder}", flush=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return status


def _subject(file: Path, folder: Path) -> Subject:
    folder.mkdir()
    return subject(file, folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

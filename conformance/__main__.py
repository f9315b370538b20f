"""Run the rendered configurations on a real NativeLink: ``python -m conformance FILE…``.

A FILE is a binary of NativeLink, or a tarball that `docker save` wrote. See docs/conformance.md.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from ansible_collections.nativelink.gitops.plugins.plugin_utils.versions import NEWEST, is_newer

from conformance import namespaces
from testbed import build, cache, components, npm
from testbed.build import BuildError
from testbed.images import NATIVELINK, NATIVELINK_VERSIONS
from testkit.subject import Subject, subject

PARTS = {
    "configurations": ["configurations"],
    "farm": ["farm", "attacks", "mutual_tls", "bucket", "grow"],
    "load": ["load"],
    "stores": ["stores"],
    "transfer": ["transfer"],
}
_WITHOUT = """\
conformance: no NativeLink to test. Run make conformance NATIVELINK=FILE (docs/conformance.md). FILE is an executable of
NativeLink, or its image, which docker pull gets and this command saves:

    docker save {image}:{version} -o FILE

Versions: {versions}."""


def main(arguments: list[str]) -> int:
    """Return 1 if a check failed, and 2 without a NativeLink, a check, or the privileges that the run needs."""
    parser = argparse.ArgumentParser(prog="python -m conformance", description=__doc__)
    add, number = parser.add_argument, "number of generated inventories (default: %(default)s)"
    add("files", nargs="*", type=Path, metavar="FILE", help="a binary, or a tarball of docker save")
    add(
        "--part",
        choices=PARTS,
        action="append",
        help="run only that part (default: configurations and farm; the others measure)",
    )
    add("--inventories", type=int, default=60, metavar="N", help=number)
    add("--clusters", default=namespaces.ROOT / "clusters", metavar="FOLDER", help="folder of the committed trees")
    add("--only", default="", metavar="TEXT", help="run only the checks whose names, or that of the tree, contain TEXT")
    given = parser.parse_args(arguments)
    if not given.files:
        versions = " and ".join(NATIVELINK_VERSIONS)
        print(_WITHOUT.format(image=NATIVELINK, version=NATIVELINK_VERSIONS[-1], versions=versions), file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder, status = Path(tempfile.mkdtemp(prefix="conformance-")), 2
    parts = given.part or ["configurations", "farm"]
    checks = [str(Path(__file__).with_name(f"test_{name}.py")) for part in parts for name in PARTS[part]]
    options = [f"--{name}={getattr(given, name)}" for name in ("inventories", "clusters", "only")]
    try:
        enter = namespaces.entering()
        subjects = [_subject(file, folder / f"subject-{number}") for number, file in enumerate(given.files)]
        missing = json.dumps(_missing(clients=parts != ["configurations"]))
        print(f"{'version':9} {'tree':16} {'configuration or check':58} {'outcome':8} detail", flush=True)
        # The table takes the place of pytest's own output. Its codes from 2 on say that nothing was tested.
        pytest = ["-m", "pytest", "-pno:terminal", "-pno:cacheprovider", *checks, *options, f"--missing={missing}"]
        found = []
        for number, each in enumerate(subjects):
            own = f"--nativelink={json.dumps(asdict(each))}", f"--basetemp={folder}/{number}"
            found.append(namespaces.run(enter, *pytest, *own))
        status = min(2, max(found))
    except (BuildError, namespaces.NamespaceError) as error:
        print(f"conformance: {error}", file=sys.stderr)
    finally:
        if status == 1:
            print(f"configurations and logs: {folder}", flush=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return status


def _missing(*, clients: bool) -> dict[str, str]:
    """Make the other programs, because namespaces have no network. Return why one is not there, by its name.

    BuildError if there can be no client at all.
    """
    wanted: dict[str, Callable[[], object]] = {"redis": components.redis_stack}
    if clients:
        build.program("reapi-load")
        build.program("otelcol")
        wanted["bazel"] = lambda: npm.program("bazel")
        wanted["bucket"] = lambda: build.wheels("seaweedfs")
    found = {}
    for name, make in wanted.items():
        try:
            make()
        except BuildError as error:
            cache.say(f"without {name}: {error}")
            found[name] = str(error)
    return found


def _subject(file: Path, folder: Path) -> Subject:
    folder.mkdir()
    found = subject(file, folder)
    note = ", a stand-in, which shows nothing about NativeLink itself" if found.stand_in else ""
    note += f", with the configuration of {NEWEST}" if is_newer(found.version) else ""
    print(f"NativeLink {found.title}{note}: {found.binary}", flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

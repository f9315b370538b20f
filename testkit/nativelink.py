"""Access of the tests to NativeLink, in ways that work with the original and with its stand-in.

The images are the stand-in's, or the original's if ``TESTBED_IMAGES`` has them (testbed/README.md).
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from testbed import build, cache, images
from testkit.subject import subject

SAVED = {name: path for name, path in images.saved().items() if name.startswith(f"{images.NATIVELINK}:")}
"""The saved images of the original by name. There are none if NativeLink is the stand-in."""


def only_stand_in(can: str) -> pytest.MarkDecorator:
    """Skip a test that needs the stand-in if NativeLink is the original."""
    return pytest.mark.skipif(bool(SAVED), reason=f"NativeLink is the original here, but only its stand-in can {can}")


def only_original(shows: str) -> pytest.MarkDecorator:
    """Skip a test that says something about NativeLink itself if NativeLink is the stand-in."""
    return pytest.mark.skipif(not SAVED, reason=f"NativeLink is its stand-in here, and only the original shows {shows}")


def program() -> Path:
    """Return NativeLink as a program of this machine: from the newest saved image, or the stand-in."""
    if not SAVED:
        return build.program("nativelink")
    image = SAVED[max(SAVED)]
    folder = cache.root() / "saved" / f"nativelink-{cache.digest(image.read_bytes())}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    return cache.made(folder, lambda draft: Path(subject(image, draft).binary)) / "nativelink"


def started(name: Path, config: dict[str, Any], *before: str, **environment: str) -> subprocess.Popen[bytes]:
    """Start NativeLink on this machine, with the configuration ``NAME.json5`` and the log ``NAME.log``.

    ``before`` is a command that runs NativeLink, such as ``unshare`` with its options.
    """
    file, schema = name.with_suffix(".json5"), images.nativelink_schema(images.NATIVELINK_VERSIONS[-1])
    file.write_text(json.dumps(config))
    variables = {**os.environ, "NATIVELINK_SCHEMA": str(schema), **environment}
    with name.with_suffix(".log").open("ab") as log:
        return subprocess.Popen([*before, program(), file], env=variables, stdout=log, stderr=log)

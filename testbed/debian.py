"""Root file systems made of Debian packages, which are unpacked but never installed on this machine.

This module needs apt-get and dpkg-deb, but not root, because apt works on a package database of its own. The packages
come from the machine's sources.
"""

import platform
import shutil
import time
from pathlib import Path

from testbed import build, cache

# tar unpacks a package, because dpkg-deb --extract would replace a link with a folder.
_UNPACK = 'dpkg-deb --fsys-tarfile "$0" | tar --extract --keep-directory-symlink --no-same-owner --directory="$1"'


def _unpack(names: tuple[str, ...], draft: Path) -> None:
    """Fetch packages and all their dependencies (apt checks signatures and hashes), and unpack them into ``root``."""
    apt, root, lists = draft / "apt", draft / "root", draft.parent / "lists"
    for folder in (lists / "partial", apt / "cache" / "archives" / "partial", root):
        folder.mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()  # apt finds nothing installed, so it fetches every dependency
    settings = {
        "Dir::State": apt,
        "Dir::State::lists": lists,
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt / "cache",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "",
        "APT::Update::Error-Mode": "any",  # without it an update that fetched nothing succeeds
    }
    config = apt / "apt.conf"
    config.write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()))
    get = ("apt-get", "-qq", f"--config-file={config}")
    cache.say(f"fetching Debian packages: {' '.join(names)}")
    updated = lists / "updated"
    with cache.locked(draft.parent / "lists.lock"):  # all roots share the lists, for an hour
        if not updated.exists() or updated.stat().st_mtime < time.time() - 3600:
            build.run(*get, "update", pauses=build.DOWNLOAD)
            updated.touch()
        build.run(*get, "-y", "--download-only", "install", *names, pauses=build.DOWNLOAD)
    packages = sorted((apt / "cache" / "archives").glob("*.deb"))
    # Some systems keep /bin apart from /usr/bin. Here /bin is a link from the start, as in Debian's own installer.
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for package in packages:
        build.run("bash", "-o", "pipefail", "-c", _UNPACK, package, root)
    (draft / "packages").write_text("".join(f"{package.name}\n" for package in packages))
    shutil.rmtree(apt)


def root(*names: str) -> Path:
    """Return the folder of a root file system with these packages and all their dependencies, and make it if needed.

    No maintainer script has run. The file ``packages`` beside the folder lists the packages with their versions, which
    are those of the day when the folder was made. ``build.BuildError`` is raised if the folder can't be made.
    """
    key = cache.digest(Path(__file__).read_bytes(), platform.freedesktop_os_release().get("ID", ""), *sorted(names))
    release = platform.freedesktop_os_release().get("VERSION_CODENAME", "unknown")
    made = cache.made(cache.root() / "debian" / f"{release}-{key}", lambda draft: _unpack(names, draft))
    return made / "root"

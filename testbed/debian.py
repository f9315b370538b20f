"""Root file systems made of Debian packages, which are unpacked but never installed on this machine.

This module needs apt-get and dpkg-deb, but not root, because apt works on a package database of its own. The packages
come from the machine's sources.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

from testbed import build, cache


def _run(*command: str | Path) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise build.BuildError(f"{error.filename} is needed: a Debian or Ubuntu machine has it") from None
    if done.returncode:
        raise build.BuildError(f"{' '.join(map(str, command))} failed: {done.stderr.strip()[-2000:]}")
    return done.stdout


def _unpack(names: tuple[str, ...], draft: Path) -> None:
    """Fetch packages and all their dependencies (apt checks signatures and hashes), and unpack them into ``root``."""
    apt, root = draft / "apt", draft / "root"
    for folder in (apt / "lists" / "partial", apt / "cache" / "archives" / "partial", root):
        folder.mkdir(parents=True)
    (apt / "status").touch()  # apt finds nothing installed, so it fetches every dependency
    settings = {
        "Dir::State": apt,
        "Dir::State::lists": apt / "lists",
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt / "cache",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "",
    }
    options = [f"-o={name}={value}" for name, value in settings.items()]
    cache.say(f"fetching Debian packages: {' '.join(names)}")
    _run("apt-get", "-qq", *options, "update")
    _run("apt-get", "-qq", "-y", *options, "--download-only", "install", *names)
    packages = sorted((apt / "cache" / "archives").glob("*.deb"))
    # Some systems keep /bin apart from /usr/bin. Here /bin is a link from the start, as in Debian's own installer.
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for package in packages:
        # tar unpacks the package, because dpkg-deb --extract would replace a link with a folder.
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as files:
            _run_tar(root, files)
    (draft / "packages").write_text("".join(f"{package.name}\n" for package in packages))
    shutil.rmtree(apt)


def _run_tar(root: Path, files: subprocess.Popen[bytes]) -> None:
    command = ["tar", "--extract", "--keep-directory-symlink", "--no-same-owner", f"--directory={root}"]
    done = subprocess.run(command, stdin=files.stdout, capture_output=True, text=True, check=False)
    if done.returncode:
        raise build.BuildError(f"unpacking {files.args!r} failed: {done.stderr[-2000:]}")


def root(*names: str) -> Path:
    """Return the folder of a root file system with these packages and all their dependencies, and make it if needed.

    No maintainer script has run. The file ``packages`` beside the folder lists the packages with their versions, which
    are those of the day when the folder was made. ``build.BuildError`` is raised if the folder can't be made.
    """
    key = cache.digest(Path(__file__).read_bytes(), platform.freedesktop_os_release().get("ID", ""), *sorted(names))
    release = platform.freedesktop_os_release().get("VERSION_CODENAME", "unknown")
    made = cache.made(cache.root() / "debian" / f"{release}-{key}", lambda draft: _unpack(names, draft))
    return made / "root"

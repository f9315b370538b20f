"""The NativeLink under test: a binary, or the binary in an image that `docker save` wrote."""

import json
import posixpath
import re
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.nativelink.gitops.plugins.plugin_utils.versions import VERSIONS, UnknownVersionError, row

from testbed.build import BuildError
from testbed.images import NATIVELINK, saved_image

_SAYS = re.compile(r"^nativelink (\d+\.\d+\.\d+)\s*$", re.MULTILINE)
SCHEMA = ".schema.json"  # the file beside our stand-in has the stand-in's name and this suffix
_LINKS = 10  # symbolic links on the way to a file; more are a loop
_STAND_IN = "stand-in for NativeLink"  # the first words of its log


@dataclass(frozen=True)
class Subject:
    """A NativeLink: its executable, its version (``v1.6.6``), and True if it is our stand-in."""

    binary: str
    version: str
    stand_in: bool

    @property
    def title(self) -> str:
        """The version as a row of the table shows it; a stand-in has an asterisk."""
        return f"{self.version}*" if self.stand_in else self.version


def subject(file: Path, folder: Path) -> Subject:
    """Return the NativeLink in a file. BuildError if there is none.

    The binary of an image is extracted into ``folder``.
    """
    if not file.is_file():
        raise BuildError(f"{file} does not exist. Name a binary of NativeLink, or a tarball of docker save")
    if tarfile.is_tarfile(file):
        binary, tags = _extract(file, folder)
    else:
        binary, tags = file.resolve(), ()
    said = _said(binary, file)
    stand_in = _STAND_IN in said
    found = _SAYS.search(said)
    version = f"v{found[1]}" if found else _tagged(tags)
    try:
        row(version)
    except UnknownVersionError:
        raise BuildError(
            f"{file}: its version is {version or 'unknown'}, and the trees are for {' and '.join(VERSIONS)}, and for "
            "newer ones: a binary tells it by --version, an image by its tag"
        ) from None
    return Subject(str(binary), version, stand_in)


def _said(binary: Path, file: Path) -> str:
    try:
        done = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{file} does not run: {error}") from None
    return done.stdout + done.stderr


def _tagged(tags: tuple[str, ...]) -> str:
    """Return the version that the tags of an image name, or "" unless they name exactly one."""
    versions = {found[1] for tag in tags if (found := re.search(r":(v\d+\.\d+\.\d+)$", tag))}
    return versions.pop() if len(versions) == 1 else ""


def _extract(file: Path, folder: Path) -> tuple[Path, tuple[str, ...]]:
    """Extract the entrypoint of an image from the last layer that has it. Return its path and the image's tags."""
    image, binary = saved_image(file), folder / "nativelink"
    with tarfile.open(file) as archive:
        settings = json.loads(_read(archive, image["Config"])).get("config") or {}
        entrypoint = [*(settings.get("Entrypoint") or ()), *(settings.get("Cmd") or ())]
        if not entrypoint:
            raise BuildError(f"{file}: the image has no entrypoint. Use an image of {NATIVELINK}")
        for suffix in ("", SCHEMA):
            found = (_file_in(archive, layer, entrypoint[0] + suffix) for layer in reversed(image["Layers"]))
            if content := next((each for each in found if each is not None), None):
                binary.with_name(binary.name + suffix).write_bytes(content)
    if not binary.exists():
        raise BuildError(f"{file}: no layer has the entrypoint {entrypoint[0]}")
    binary.chmod(0o755)
    return binary, tuple(image.get("RepoTags") or ())


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo | str) -> bytes:
    content = archive.extractfile(member)
    return content.read() if content else b""


def _file_in(archive: tarfile.TarFile, layer: str, path: str) -> bytes | None:
    """Return the member of a layer at an absolute path, which may go through symbolic links of that layer."""
    with tarfile.open(fileobj=archive.extractfile(layer)) as inside:
        members = {posixpath.normpath(f"/{member.name}"): member for member in inside}
        member = members.get(_resolved(members, path))
        return _read(inside, member) if member and member.isfile() else None


def _resolved(members: dict[str, tarfile.TarInfo], path: str) -> str:
    """Resolve the symbolic links of a layer in an absolute path, those of folders too."""
    found, rest, links = "/", path.strip("/").split("/"), 0
    while rest:
        step = posixpath.join(found, rest.pop(0))
        member = members.get(step)
        if member and member.issym() and links < _LINKS:
            links += 1
            target = posixpath.normpath(posixpath.join(found, member.linkname))
            found, rest = "/", [*target.strip("/").split("/"), *rest]
        else:
            found = step
    return found

"""Brings a cluster's folder to its rendered files: writes a new `rendered/` beside the old one, then swaps the two."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from .findings import Finding
from .render import KUSTOMIZATION
from .specs import ROOT

USER_FILES = ROOT / "roles/nativelink/files"
# kustomization.yaml is the last one, because it says that all are there.
_NAMES = ("patches/README.md", KUSTOMIZATION)
RENDERED = "rendered"
# The new files at their paths in the cluster's folder, and the former rendered/ as `replaced`.
TEMPORARY = ".nativelink-gitops.tmp"

_REMEDIES = {
    errno.EACCES: "give the user that runs Ansible read and write access to it and to all that it contains",
    errno.EROFS: "mount its file system writable, or set nativelink_clusters_dir to a writable folder",
    errno.ENOSPC: "free space on its file system",
    errno.EDQUOT: "free space on its file system, or raise the quota of the user that runs Ansible",
    errno.EBUSY: "do not mount a folder inside of the cluster's folder; mount the cluster's folder as a whole",
    # overlayfs does not rename a folder of a lower layer.
    errno.EXDEV: "do not render into a folder of a container image; mount the cluster's folder as a whole",
}
_REMEDIES[errno.EPERM] = _REMEDIES[errno.EACCES]


class WriteError(Exception):
    """A tree that cannot be written; the message has one finding in each line."""


@dataclass
class Result:
    """The changes that writing a tree made, or would make. Paths are relative to the cluster's folder, in order."""

    created: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    diff: list[dict[str, str]] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Return whether anything differs."""
        return bool(self.created or self.changed or self.removed)


def write(directory: Path, files: Mapping[str, str], *, check: bool = False, diff: bool = False) -> Result:
    """Bring a cluster's folder, which is named after the cluster, to the rendered `files`.

    A tree that does not differ is not touched. Another one is written as a whole into a temporary folder, in which
    hard links keep the unchanged files, and takes the old tree's place by two renames. A run that is killed between
    the two leaves no `rendered/` and both trees in the temporary folder; killed before or after, it leaves the old or
    the new tree. The next run recovers from each of these. Files are not flushed to disk: render again after a power
    failure. The user's files are made once and never touched again.

    With `check` nothing is written; with `diff` the result holds each file's text before and after.

    Raises WriteError when the folder holds what rendering does not write through (symbolic links, files where folders
    belong), when another run writes it, or when the operating system refuses. The old tree is then still in place.
    """
    try:
        _check_folders(directory)
        if check:
            return _compared(directory, files, diff)[0]
        with _locked(directory):
            _recover(directory)
            result, staged = _compared(directory, files, diff)
            if staged:
                _replace(directory, staged)
            return result
    except OSError as error:
        path = Path(error.filename or directory)
        path = directory if path.is_relative_to(directory / TEMPORARY) else path
        fault = (f"{path} cannot be read or written: {error.strerror}", _REMEDIES.get(error.errno or 0, "correct this"))
        raise _error(directory, fault) from error


def _error(directory: Path, *faults: tuple[str, str]) -> WriteError:
    """The error that names these problems and their remedies."""
    findings = [
        Finding(directory.name, "nativelink_clusters_dir", problem, f"{remedy}, and render again")
        for problem, remedy in faults
    ]
    return WriteError("\n".join(map(str, findings)))


def _check_folders(directory: Path) -> None:
    """Raise where something else is in a folder's place. `nativelink_clusters_dir` and its parents may be links."""
    parent = next(folder for folder in directory.parents if folder.exists())
    if not parent.is_dir():
        raise _error(directory, _misplaced(directory, parent))
    for folder in (directory, directory / RENDERED, directory / TEMPORARY):
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise _error(directory, _misplaced(directory, folder))


def _misplaced(directory: Path, path: Path) -> tuple[str, str]:
    """The problem and the remedy of a path that is neither the file nor the folder that belongs there."""
    if path.is_symlink():
        remedy = "put a folder in its place" if path == directory else "remove the link"
        return f"{path} is a symbolic link, and rendering writes only inside of the cluster's folder", remedy
    if path.is_file():
        return f"{path} is a file where a folder belongs", "move the file away"
    return f"{path} is neither a regular file nor a folder", "remove it"


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Make the cluster's folder, and hold it against other runs, as far as its file system has locks."""
    directory.mkdir(parents=True, exist_ok=True)
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _error(directory, (f"another run is writing {directory}", "wait until it has ended")) from None
        except OSError:
            pass  # NFS, for example, has no locks for folders
        yield
    finally:
        os.close(folder)


def _compared(directory: Path, files: Mapping[str, str], diff: bool) -> tuple[Result, dict[str, str | None]]:
    """Return the differences, and the files of the new tree: the text of each, or None where the old file stays."""
    entries = list(_entries(directory / RENDERED)) if (directory / RENDERED).exists() else []
    others = sorted(Path(entry.path) for entry in entries if not entry.is_file(follow_symlinks=False))
    if others:
        raise _error(directory, *(_misplaced(directory, path) for path in others))
    present = {str(Path(entry.path).relative_to(directory)) for entry in entries}

    result = Result()
    wanted = {f"{RENDERED}/{path}": text for path, text in files.items()}
    users = _missing_user_files(directory)
    staged: dict[str, str | None] = {}
    for path, text in {**users, **wanted}.items():
        before = _text_of(directory / path) if path in present else None
        staged[path] = None if before == text else text
        if before == text:
            continue
        (result.changed if before is not None else result.created).append(path)
        if diff:
            result.diff.append(_diff(path, before, text))
    for path in sorted(present - wanted.keys()):
        result.removed.append(path)
        if diff:
            result.diff.append(_diff(path, _text_of(directory / path), None))
    same = len(result.created) == len(users) and not result.changed and not result.removed
    return result, dict(users) if same else staged


def _entries(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    """All that is below a folder except folders. Symbolic links are not followed."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _entries(entry.path)
            else:
                yield entry


def _missing_user_files(directory: Path) -> dict[str, str]:
    """The user's files, if there is no kustomization.yaml: a file that the user deletes later stays deleted.

    Nothing is made inside of what stands in the place of patches/, because it is the user's as well.
    """
    if os.path.lexists(directory / KUSTOMIZATION):
        return {}
    return {
        str(name): (USER_FILES / name).read_text(encoding="utf-8")
        for name in map(Path, _NAMES)
        if not os.path.lexists(directory / name)
        and not (directory / name.parent).is_symlink()
        and not (directory / name.parent).is_file()
    }


def _text_of(path: Path) -> str:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return file.read()
    except UnicodeDecodeError:
        return ""


def _replace(directory: Path, staged: Mapping[str, str | None]) -> None:
    """Write the files into the temporary folder, then put them in place."""
    beside, rendered = directory / TEMPORARY, directory / RENDERED
    try:
        beside.mkdir()
        for below, _unused, _unused in os.walk(rendered):
            # The old tree could be replaced, but not be removed.
            if not os.access(below, os.W_OK | os.X_OK, effective_ids=True):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), below)
        for folder in sorted({(beside / path).parent for path in staged}):
            folder.mkdir(parents=True, exist_ok=True)
        for path, text in staged.items():
            if text is None:
                _keep(directory / path, beside / path)
            else:
                with (beside / path).open("x", newline="", encoding="utf-8") as file:
                    file.write(text)
        if (beside / RENDERED).exists():
            if rendered.exists():
                rendered.rename(beside / "replaced")
            (beside / RENDERED).rename(rendered)
        for path in staged:
            if not path.startswith(f"{RENDERED}/"):
                (directory / path).parent.mkdir(exist_ok=True)
                (beside / path).rename(directory / path)
    except BaseException:
        with suppress(OSError):
            _recover(directory)
            directory.rmdir()  # empty only where this run made it
        raise
    _recover(directory)


def _keep(old: Path, new: Path) -> None:
    """Have a file at a second path, with its time of change."""
    try:
        os.link(old, new)
    except OSError:  # not every file system has hard links
        shutil.copy2(old, new)


def _recover(directory: Path) -> None:
    """Remove the temporary folder; an old tree that nothing has replaced goes back to its place."""
    beside, rendered = directory / TEMPORARY, directory / RENDERED
    if (beside / "replaced").exists() and not rendered.exists():
        (beside / "replaced").rename(rendered)
    if beside.exists():
        shutil.rmtree(beside)


def _diff(path: str, before: str | None, after: str | None) -> dict[str, str]:
    return {
        "before": before or "",
        "after": after or "",
        "before_header": path if before is not None else f"{path} (new)",
        "after_header": path if after is not None else f"{path} (removed)",
    }

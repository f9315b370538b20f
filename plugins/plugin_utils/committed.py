"""Reads the trees that the clusters run: those of a Git revision or, outside of a Git repository, those on disk."""

import subprocess
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path


class UnknownRevisionError(Exception):
    """A revision that Git does not know. The message says what it is and where it was looked for."""


def read(folder: Path, paths: Iterable[str], revision: str = "HEAD") -> dict[str, bytes]:
    """The files at `paths` below `folder` in a revision; outside of a Git repository, those on disk.

    In a repository only the revision counts, because a cluster cannot run what was never committed. A repository
    without commits has no files. Raises UnknownRevisionError for any other revision that Git does not know.
    """
    if not folder.is_dir():
        return {}
    names = list(paths)
    wanted = [f"{revision}^{{tree}}", *(f"{revision}:./{name}" for name in names)]
    try:
        answer = subprocess.run(
            ["git", "cat-file", "--batch"],
            cwd=folder,
            input="".join(f"{name}\n" for name in wanted).encode(),
            capture_output=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):  # OSError: Git is not installed
        return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
    batch = BytesIO(answer)
    contents = [_next_object(batch) for _unused in wanted]
    if contents[0] is None and revision != "HEAD":
        raise UnknownRevisionError(f"is {revision}, which Git does not know in {folder}")
    return {name: content for name, content in zip(names, contents[1:], strict=True) if content is not None}


def _next_object(batch: BytesIO) -> bytes | None:
    """The next object of the output of git cat-file --batch; None for one that is missing or ambiguous."""
    size = batch.readline().split()[-1]
    if not size.isdigit():
        return None
    content = batch.read(int(size))
    batch.readline()
    return content

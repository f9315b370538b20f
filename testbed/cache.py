"""The user's cache: folders that the first process makes, completely or not at all."""

import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def root() -> Path:
    """Return ``${XDG_CACHE_HOME:-~/.cache}/nativelink-gitops``, which may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nativelink-gitops"


def say(message: str) -> None:
    """Print progress to stderr, because stdout is for results."""
    print(message, file=sys.stderr, flush=True)


def digest(*parts: bytes | str) -> str:
    """Return 16 hexadecimal digits that differ if any part, or the split into parts, differs."""
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
    return total.hexdigest()[:16]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file between processes. The kernel releases it when its holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that holds {path}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def made(target: Path, make: Callable[[Path], None]) -> Path:
    """Return the folder ``target``, made by ``make(empty_folder)`` if it does not exist.

    ``make`` fills a folder beside the target, which is then renamed, so the target is always complete. If two processes
    need it, one makes it and the other waits. An exception of ``make`` is raised, and leaves no files. The remains of a
    process that was killed are removed.
    """
    if target.is_dir():
        return target
    with locked(target.with_name(f"{target.name}.lock")):
        if target.is_dir():
            return target
        for left in target.parent.glob(f"{target.name}.*.draft"):
            shutil.rmtree(left, ignore_errors=True)
        draft = Path(tempfile.mkdtemp(prefix=f"{target.name}.", suffix=".draft", dir=target.parent))
        try:
            make(draft)
            draft.chmod(0o755)
            draft.rename(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return target

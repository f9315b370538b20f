"""Brings a cluster's folder to its rendered files. Each write is atomic; the next run finishes an interrupted one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .render import KUSTOMIZATION
from .specs import ROOT

USER_FILES = ROOT / "roles/nativelink/files"
_TEMPORARY = ".nativelink-gitops.tmp"


@dataclass
class Result:
    """What writing a tree did, or would do; paths are relative to the cluster's folder, in order."""

    created: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    diff: list[dict[str, str]] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return bool(self.created or self.changed or self.removed)


def write(directory: Path, files: Mapping[str, str], *, check: bool = False, diff: bool = False) -> Result:
    """Bring a cluster's folder to the rendered `files`; the user's files are made once and then left alone.

    Each file is replaced in one step, rendered/kustomization.yaml last; then what is not in `files` goes, from
    `rendered/` only. Whatever interrupts it, the next run converges. With `check` nothing is written, with `diff` the
    result holds each file's text before and after.
    """
    result = Result()
    wanted = {f"rendered/{path}": text for path, text in files.items()}
    for path, text in {**_missing_user_files(directory), **wanted}.items():
        before = _text_of(directory / path)
        if before == text:
            continue
        (result.changed if before is not None else result.created).append(path)
        if diff:
            result.diff.append(_diff(path, before, text))
        if not check:
            _replace(directory / path, text)
    for path in sorted(_files_below(directory, "rendered") - wanted.keys()):
        if not path.endswith(_TEMPORARY):  # what an interrupted run left is no news
            result.removed.append(path)
            if diff:
                result.diff.append(_diff(path, _text_of(directory / path) or "", None))
        if not check:
            (directory / path).unlink()
    if not check:
        _tidy(directory)
    return result


def _missing_user_files(directory: Path) -> dict[str, str]:
    """The user's files, when the cluster's folder has none: what he deletes later stays deleted."""
    if (directory / KUSTOMIZATION).exists():
        return {}
    return {
        str(path.relative_to(USER_FILES)): path.read_text()
        for path in sorted(USER_FILES.rglob("*"), reverse=True)  # kustomization.yaml last: it says that all are there
        if path.is_file() and not (directory / path.relative_to(USER_FILES)).exists()
    }


def _text_of(path: Path) -> str | None:
    try:
        with path.open(newline="") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        return ""


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + _TEMPORARY)
    with temporary.open("w", newline="") as file:
        file.write(text)
    os.replace(temporary, path)  # noqa: PTH105 (Path.replace, under the name that tests interrupt)


def _files_below(directory: Path, name: str) -> set[str]:
    return {
        str((Path(folder) / file).relative_to(directory))
        for folder, _, files in os.walk(directory / name)
        for file in files
    }


def _tidy(directory: Path) -> None:
    """Remove what an interrupted run left of the user's files, and folders below rendered/ that became empty."""
    for left in [*directory.glob(f"*{_TEMPORARY}"), *directory.glob(f"patches/*{_TEMPORARY}")]:
        left.unlink()
    for folder, _, _ in sorted(os.walk(directory / "rendered"), reverse=True):
        if not any(os.scandir(folder)):
            Path(folder).rmdir()


def _diff(path: str, before: str | None, after: str | None) -> dict[str, str]:
    return {
        "before": before or "",
        "after": after or "",
        "before_header": path if before is not None else f"{path} (new)",
        "after_header": path if after is not None else f"{path} (removed)",
    }

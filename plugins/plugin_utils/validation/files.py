"""Errors in inventory files that Ansible ignores or only warns about. Depends on no part of Ansible."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

from ..findings import Finding

_SUFFIXES = ("", ".yml", ".yaml", ".json")
_VARIABLES = ("group_vars", "host_vars")
_GROUP_KEYS = ("hosts", "children", "vars")


def file_findings(sources: Iterable[str]) -> list[Finding]:
    """Keys that appear twice in an inventory file or a file of variables, and keys of groups that Ansible skips.

    `sources` are Ansible's inventory sources, of which only YAML files and folders are checked. A key may override one
    of a merge (`<<: *name`). In a finding, `cluster` is the file and line.
    """
    findings: list[Finding] = []
    checked: set[Path] = set()
    for source in map(Path, sources):
        folder = source if source.is_dir() else source.parent
        inventories = _files(source) if source.is_dir() else [source] if source.is_file() else []
        variables = [file for name in _VARIABLES for file in _files(folder / name)]
        for file in [*inventories, *variables]:
            if file in checked or not (root := _root(file)):
                continue
            checked.add(file)
            found = [*_duplicates(root), *(_skipped_keys(root) if file in inventories else ())]
            findings += [Finding(f"{os.path.relpath(file)}:{line}", *finding) for line, *finding in found]
    return findings


def _files(folder: Path) -> list[Path]:
    """The YAML files in `folder` at any depth, without hidden ones and files of variables."""
    found = (file for file in folder.rglob("*") if file.is_file() and file.suffix in _SUFFIXES)
    inside = ((file, file.relative_to(folder).parts) for file in found)
    return sorted(
        file for file, parts in inside if not any(part.startswith(".") or part in _VARIABLES for part in parts)
    )


def _root(file: Path) -> yaml.MappingNode | None:
    """The mapping that `file` holds. None for anything else: Ansible reports files that it cannot parse."""
    if file.suffix == "" and os.access(file, os.X_OK):
        return None  # a script
    try:
        node = yaml.compose(file.read_text(), yaml.CSafeLoader)
    except (yaml.YAMLError, OSError, UnicodeDecodeError):
        return None
    return node if isinstance(node, yaml.MappingNode) else None


def _duplicates(root: yaml.Node) -> Iterator[tuple[int, str, str, str]]:
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue  # an alias
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            lines: dict[tuple[str, str], int] = {}
            for key, value in node.value:
                waiting.append(value)
                line = key.start_mark.line + 1
                if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                    name = (key.tag, key.value)
                    if name in lines:
                        yield line, key.value, f"is already set in line {lines[name]}", "remove one of the two"
                    lines.setdefault(name, line)


def _skipped_keys(root: yaml.MappingNode) -> Iterator[tuple[int, str, str, str]]:
    groups = list(root.value)
    if any(name.value in ("plugin", "_meta") for name, _ in groups):
        return  # the configuration of an inventory plugin, or the output of a script
    remedy = "write clusters under hosts, groups under children and variables under vars"
    while groups:
        group, keys = groups.pop()
        if isinstance(keys, yaml.ScalarNode) and not keys.tag.endswith(":null"):
            yield group.start_mark.line + 1, str(group.value), "is not a group of clusters", remedy
        for key, value in keys.value if isinstance(keys, yaml.MappingNode) else ():
            if key.value == "children" and isinstance(value, yaml.MappingNode):
                groups += value.value
            elif key.value not in (*_GROUP_KEYS, "<<"):
                yield key.start_mark.line + 1, str(key.value), f"unknown key in the group {group.value}", remedy

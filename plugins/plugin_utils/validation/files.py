"""Checks the inventory's YAML files for errors that Ansible ignores, warns about or reports without file and line."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import yaml

from ..findings import Finding, relative

_SUFFIXES = ("", ".yml", ".yaml", ".json")
_VARIABLES = ("group_vars", "host_vars")
_GROUP_KEYS = ("hosts", "children", "vars")
_QUOTES = 'put the template in quotes: "{{ name }}"'
# An error yields its line, key, problem and remedy.
_Errors = Iterator[tuple[int, str, str, str]]


class UnreadableError(Exception):
    """A file that cannot be read or decrypted. The arguments are the problem and the remedy."""


def file_findings(sources: Iterable[str], read: Callable[[Path], bytes] = Path.read_bytes) -> list[Finding]:
    """Files that cannot be read or parsed, keys that appear twice, and keys of groups that Ansible skips.

    `sources` are Ansible's inventory sources, of which only YAML files and folders are checked. `read` returns the
    decrypted content of a file. A key may override one of a merge (`<<: *name`). The `cluster` of a finding is the file
    and line.
    """
    findings: dict[Path, list[Finding]] = {}
    for file, is_inventory in _read_by_ansible(sources):
        try:
            errors = [*_unread(file), *_errors(read(file), is_inventory)]
        except UnreadableError as error:
            errors = [(1, "content", *error.args)]
        findings[file] = [Finding(f"{relative(file)}:{line}", *error) for line, *error in errors]
    return [finding for found in findings.values() for finding in found]


def beside(file: Path) -> list[Path]:
    """The files, such as `host_vars/CLUSTER.yml`, that Ansible does not read beside `host_vars/CLUSTER/NAME.yml`."""
    folder = file.parent
    return [other for suffix in _SUFFIXES if (other := folder.with_name(folder.name + suffix)).is_file()]


def vault_places(sources: Iterable[str]) -> dict[str, str]:
    """The beginning of a message (`file:line: `) for each vaulted value in the inventory's files, by its ciphertext."""
    places = {}
    for file, _unused in _read_by_ansible(sources):
        try:
            events = list(yaml.parse(file.read_bytes(), yaml.CSafeLoader))
        except (OSError, yaml.YAMLError):
            continue  # such as a file that is vaulted as a whole
        for event in events:
            if getattr(event, "tag", None) in ("!vault", "!vault-encrypted"):
                places[event.value] = f"{relative(file)}:{event.start_mark.line + 1}: "
    return places


def _read_by_ansible(sources: Iterable[str]) -> Iterator[tuple[Path, bool]]:
    """Each file with clusters or variables, and whether it is an inventory."""
    for source in map(Path, sources):
        folder = source if source.is_dir() else source.parent
        inventories = _files(source) if source.is_dir() else [source] if source.is_file() else []
        variables = [file for name in _VARIABLES for file in _files(folder / name)]
        for file in dict.fromkeys([*inventories, *variables]):
            yield file, file in inventories


def _files(folder: Path) -> list[Path]:
    """The YAML files in `folder` at any depth, without hidden ones, scripts and files of variables."""
    files = []
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        hidden = any(part.startswith(".") or part in _VARIABLES for part in parts)
        if not hidden and file.is_file() and file.suffix in _SUFFIXES and not os.access(file, os.X_OK):
            files.append(file)
    return files


def _errors(content: bytes, is_inventory: bool) -> _Errors:
    try:
        root = yaml.compose(content, yaml.CSafeLoader)
    except yaml.YAMLError as error:
        # Ansible refuses an inventory that it cannot parse as YAML, INI or anything else.
        if not is_inventory:
            yield _syntax_error(content, error)
        return
    if isinstance(root, yaml.MappingNode):
        yield from _wrong_keys(root)
        if is_inventory:
            yield from _skipped_keys(root)


def _unread(file: Path) -> _Errors:
    """A file of variables beside a folder of its name, of which Ansible reads only the folder."""
    folder = file.with_suffix("")
    if file.parent.name in _VARIABLES and file.suffix and folder.is_dir():
        problem = f"Ansible does not read it next to the folder {relative(folder)}"
        yield 1, "content", problem, "move it into that folder"


def _syntax_error(content: bytes, error: yaml.YAMLError) -> tuple[int, str, str, str]:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
    lines = content.decode(errors="replace").splitlines()
    number = min(mark.line, len(lines) - 1) if mark else 0
    template = re.search(r"[:-] +\{[{%]", lines[number])
    key = lines[number].partition(":")[0].strip(" -") or "content"
    return (
        number + 1,
        key,
        f"invalid YAML ({problem})",
        _QUOTES if template else "correct this line or the one above it",
    )


def _wrong_keys(root: yaml.Node) -> _Errors:
    """Keys that appear twice, and templates without quotes, which are mappings with a mapping as their key."""
    seen: set[int] = set()
    waiting = [(root, "")]
    while waiting:
        node, name = waiting.pop()
        if id(node) in seen:
            continue  # an alias
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += [(item, name) for item in node.value]
        elif isinstance(node, yaml.MappingNode):
            lines: dict[tuple[str, str], int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if isinstance(key, yaml.MappingNode):
                    yield line, name, "is a template without quotes", _QUOTES
                if not isinstance(key, yaml.ScalarNode):
                    continue
                waiting.append((value, key.value))
                if (key.tag, key.value) in lines and key.value != "<<":
                    first = lines[key.tag, key.value]
                    yield line, key.value, f"is already set in line {first}", "remove one of the two"
                lines.setdefault((key.tag, key.value), line)


def _skipped_keys(root: yaml.MappingNode) -> _Errors:
    groups = list(root.value)
    if any(name.value in ("plugin", "_meta") for name, _unused in groups):
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

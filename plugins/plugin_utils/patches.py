"""Finds patches in the user's kustomization.yaml that match no object; kustomize itself does not report them."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from .render import KUSTOMIZATION, is_object

Object = Mapping[str, Any]


def warnings(directory: Path, files: Mapping[str, str]) -> list[str]:
    """Return the faults of the patches in a cluster's folder, a line each; `files` is the rendered tree.

    Where the user's kustomization takes objects from a folder, a URL or a component, a patch may be meant for those
    unknown objects, and no patch is reported.
    """
    path = directory / KUSTOMIZATION
    if not os.path.lexists(path):
        return []
    try:
        user = _documents(path.read_text())[0]
        resources = [str(name).removeprefix("./").rstrip("/") for name in user.get("resources") or []]
        patches = list(_patches(directory, user))
        if not patches:
            return [] if "rendered" in resources else [f"{path} does not list rendered among its resources"]
        own = [name for name in resources if name != "rendered"]
        if user.get("components") or not all((directory / name).is_file() for name in own):
            return []
        objects = [*_rendered(files), *(part for name in own for part in _documents((directory / name).read_text()))]
        return [f"{path}: {label} {problem}" for label, patch in patches for problem in _problems(patch, objects)]
    except (yaml.YAMLError, OSError, UnicodeDecodeError, AttributeError, IndexError, TypeError, re.error) as error:
        return [f"{path} cannot be checked: {' '.join(str(error).split())}"]


def _patches(directory: Path, user: Object) -> Iterator[tuple[str, Object]]:
    """Yield a label for each patch, and the patch as `{"target": …, "patch": text or None}`."""
    for entry in [*(user.get("patches") or []), *(user.get("patchesJson6902") or [])]:
        name = entry.get("path")
        text = entry.get("patch") if name is None else _read(directory / name)
        yield name or "an inline patch", {"target": entry.get("target"), "patch": text}
    for entry in user.get("patchesStrategicMerge") or []:
        inline = "\n" in entry
        yield (
            "an inline patch" if inline else entry,
            {"target": None, "patch": entry if inline else _read(directory / entry)},
        )


def _problems(patch: Object, objects: list[Object]) -> Iterator[str]:
    if patch["patch"] is None:
        yield "does not exist; remove it from the patches"
    elif patch["target"]:
        if not any(_targeted(patch["target"], item) for item in objects):
            wanted = ", ".join(f"{key} {value}" for key, value in patch["target"].items())
            yield f"matches nothing in rendered/ ({wanted}); correct its target or remove it"
    else:
        for document in _documents(patch["patch"]):
            if not any(_merges(document, item) for item in objects):
                wanted = f"{document.get('kind')} {_metadata(document).get('name')}"
                yield f"matches nothing in rendered/ ({wanted}); correct its kind, name or namespace, or remove it"


def _targeted(target: Object, item: Object) -> bool:
    """Match as kustomize does: regular expressions for names, and selectors. A missing key matches every object."""
    group, _unused, version = str(item.get("apiVersion", "")).rpartition("/")
    facts = {"group": group, "version": version, "kind": item.get("kind", ""), **_metadata(item)}
    return all(
        re.fullmatch(str(target[key]), str(facts.get(key, "")))
        for key in ("group", "version", "kind", "name", "namespace")
        if target.get(key)
    ) and all(
        _selected(str(target.get(key) or ""), _metadata(item).get(of) or {})
        for key, of in (("labelSelector", "labels"), ("annotationSelector", "annotations"))
    )


def _selected(selector: str, found: Mapping[str, str]) -> bool:
    if "(" in selector:
        return True  # set-based selectors are not parsed; a match is assumed, so that none is reported by mistake
    for part in filter(None, (part.strip() for part in selector.split(","))):
        key, operator, value = (
            text.strip() for text in re.fullmatch(r"([^!=]*)(!=|==?|)(.*)", part.lstrip("!")).groups()
        )  # type: ignore[union-attr]
        holds = found.get(key) == value if operator else key in found
        if holds == (operator == "!=" or part.startswith("!")):
            return False
    return True


def _merges(document: Object, item: Object) -> bool:
    mine, its = _metadata(document), _metadata(item)
    group, its_group = (str(part.get("apiVersion", "")).rpartition("/")[0] for part in (document, item))
    same = (document.get("kind"), mine.get("name"), group) == (item.get("kind"), its.get("name"), its_group)
    return same and mine.get("namespace") in (None, its.get("namespace"))


def _rendered(files: Mapping[str, str]) -> Iterator[Object]:
    for path, text in files.items():
        if path == KUSTOMIZATION:
            kustomization = _documents(text)[0]
            labels = kustomization["generatorOptions"]["labels"]
            for generator in kustomization["configMapGenerator"]:
                yield {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {**generator, "labels": labels}}
        elif is_object(path):
            yield from _documents(text)


def _metadata(item: Object) -> Object:
    return item.get("metadata") or {}


def _documents(text: str) -> list[Object]:
    return [part for part in yaml.load_all(text, yaml.CSafeLoader) if part]


def _read(path: Path) -> str | None:
    return path.read_text() if path.is_file() else None

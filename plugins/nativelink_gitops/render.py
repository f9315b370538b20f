"""From a cluster's variables to the files of `clusters/<name>`: rendering is pure, writing is atomic file by file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import yaml

from nativelink_gitops.cluster import resolved
from nativelink_gitops.specs import ROOT

TEMPLATES = ROOT / "roles/nativelink/templates"
USER_FILES = ROOT / "roles/nativelink/files"

# What is rendered when: the template without .j2, which is also the file below rendered/, and its condition in
# `cluster.resolved()["when"]`.
FILES = {
    "cas/cas.json5": "always",
    "cas/poddisruptionbudget.yaml": "always",
    "cas/service-headless.yaml": "always",
    "cas/service.yaml": "always",
    "cas/serviceaccount.yaml": "always",
    "cas/statefulset.yaml": "always",
    "edge/backendtrafficpolicy-single-pod.yaml": "envoy gateway with a single pod",
    "edge/backendtrafficpolicy.yaml": "envoy gateway",
    "edge/clienttrafficpolicy.yaml": "envoy gateway",
    "edge/gateway.yaml": "gateway",
    "edge/grpcroute-cache.yaml": "gateway",
    "edge/grpcroute-execution.yaml": "gateway",
    "edge/ingress.yaml": "ingress",
    "monitoring/collector-deployment.yaml": "collector",
    "monitoring/collector-poddisruptionbudget.yaml": "collector",
    "monitoring/collector-service.yaml": "collector",
    "monitoring/collector-serviceaccount.yaml": "collector",
    "monitoring/collector.yaml": "collector",
    "monitoring/demand-deployment.yaml": "demand",
    "monitoring/demand-poddisruptionbudget.yaml": "demand",
    "monitoring/demand-service.yaml": "demand",
    "monitoring/demand-serviceaccount.yaml": "demand",
    "monitoring/demand.lua": "demand",
    "monitoring/prometheus-deployment.yaml": "bundled prometheus",
    "monitoring/prometheus-poddisruptionbudget.yaml": "bundled prometheus",
    "monitoring/prometheus-service.yaml": "bundled prometheus",
    "monitoring/prometheus-serviceaccount.yaml": "bundled prometheus",
    "monitoring/prometheus.yaml": "bundled prometheus",
    "monitoring/prometheusrule.yaml": "prometheus operator with rules",
    "monitoring/rules.yaml": "bundled prometheus with rules",
    "monitoring/servicemonitor.yaml": "prometheus operator",
    "policy/cas.yaml": "always",
    "policy/collector.yaml": "collector",
    "policy/default-deny.yaml": "always",
    "policy/demand.yaml": "demand",
    "policy/dns.yaml": "always",
    "policy/prometheus.yaml": "bundled prometheus",
    "policy/redis.yaml": "bundled redis",
    "policy/scheduler.yaml": "always",
    "policy/workers-default-deny.yaml": "always",
    "policy/workers-dns.yaml": "always",
    "policy/workers.yaml": "always",
    "scheduler/deployment.yaml": "always",
    "scheduler/guard.sh": "redis",
    "scheduler/housekeeping.lua": "redis",
    "scheduler/poddisruptionbudget.yaml": "always",
    "scheduler/redis-poddisruptionbudget.yaml": "bundled redis",
    "scheduler/redis-service.yaml": "bundled redis",
    "scheduler/redis-serviceaccount.yaml": "bundled redis",
    "scheduler/redis-statefulset.yaml": "bundled redis",
    "scheduler/scheduler.json5": "always",
    "scheduler/service-workers.yaml": "always",
    "scheduler/service.yaml": "always",
    "scheduler/serviceaccount.yaml": "always",
    "worker/drain.sh": "always",
    "worker/precondition.sh": "always",
    "worker/serviceaccount.yaml": "always",
    "worker/start.sh": "always",
}
# Once a pool, in worker/<pool>/; the condition is in the pool's own `when`.
POOL_FILES = {
    "worker/pool/deployment.yaml": "always",
    "worker/pool/horizontalpodautoscaler.yaml": "hpa",
    "worker/pool/poddisruptionbudget.yaml": "always",
    "worker/pool/scaledobject.yaml": "keda",
    "worker/pool/service.yaml": "always",
    "worker/pool/worker.json5": "always",
}
KUSTOMIZATION = "kustomization.yaml"
# YAML, but no object for the API server.
CONFIGURATIONS = frozenset({"monitoring/collector.yaml", "monitoring/prometheus.yaml", "monitoring/rules.yaml"})

_TEMPORARY = ".nativelink-gitops.tmp"
_SHEBANG = {".sh": "#!/bin/sh\n"}
_COMMENT = {".yaml": "#", ".sh": "#", ".json5": "//", ".lua": "--"}
_DOCUMENT = {".yaml": "---\n"}


class RenderError(Exception):
    """A template that cannot be rendered, or whose output does not parse; the message names cluster and template."""


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


def tree(values: Mapping[str, Any]) -> dict[str, str]:
    """The files of a cluster by their path below `rendered/`, kustomization.yaml last; pure, touches no file.

    `values` are the cluster's effective variables (`specs.effective`), which are valid. Raises RenderError.
    """
    context = resolved(values)
    files = {path: _render(template, scope) for path, template, scope in _wanted(context)}
    resources = [path for path in files if path.endswith(".yaml") and path not in CONFIGURATIONS]
    files[KUSTOMIZATION] = _render(KUSTOMIZATION, {**context, "resources": resources})
    return files


def parsed(values: Mapping[str, Any], template: str) -> dict[str, Any] | None:
    """The object of one of FILES as the tree would hold it, parsed; None where the cluster has none."""
    context = resolved(values)
    return _parse(_render(template, context)) if context["when"][FILES[template]] else None


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


def warm() -> None:
    """Compile all templates now, so that processes forked from this one need not."""
    for name in _environment().list_templates():
        _environment().get_template(name)


def _wanted(context: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Path, template and context of each file."""
    for template, condition in FILES.items():
        if context["when"][condition]:
            yield template, template, context
    for pool in context["pools"]:
        for template, condition in POOL_FILES.items():
            if pool["when"][condition]:
                yield template.replace("/pool/", f"/{pool['name']}/"), template, {**context, "pool": pool}


def _render(template: str, context: Mapping[str, Any]) -> str:
    suffix = Path(template).suffix
    origin = f"roles/nativelink/templates/{template}.j2"
    header = f"{_COMMENT[suffix]} Generated by nativelink-gitops from {origin}: do not edit.\n"
    try:
        body = _environment().get_template(f"{template}.j2").render(context)
        if suffix == ".yaml":
            _parse(body)
    except (jinja2.TemplateError, yaml.YAMLError, TypeError, ValueError) as error:
        raise RenderError(f"{context['cluster']}: {origin}: {' '.join(str(error).split())}") from error
    return _SHEBANG.get(suffix, "") + header + _DOCUMENT.get(suffix, "") + body


def _parse(text: str) -> dict[str, Any]:
    return yaml.load(text, yaml.CSafeLoader)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
        cache_size=-1,
    )
    environment.filters |= {
        "quoted": quoted,
        "to_nice_yaml": to_nice_yaml,
        "to_nice_json": to_nice_json,
        "to_json": to_json,
    }
    return environment


# Filters -----------------------------------------------------------------------------------------------------------

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9/._@-]*(?::[A-Za-z0-9/._@-]+)*|[0-9]+(?:m|[KMGTP]i)")
# What YAML 1.1 or 1.2 reads as something else than a text.
_RESERVED = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff\ufffe\uffff]")


def quoted(value: str) -> str:
    """A text as a YAML scalar, in quotes only where it would be read as something else without them."""
    if _PLAIN.fullmatch(value) and value.lower() not in _RESERVED:
        return value
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))


def to_nice_yaml(value: object) -> str:
    """`value` as YAML in block style, without a newline at the end: `indent` it to where it stands."""
    return "\n".join(_yaml_lines(value))


def to_nice_json(value: object) -> str:
    """`value` as indented JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def to_json(value: object) -> str:
    """`value` as JSON on one line."""
    return json.dumps(value, ensure_ascii=False)


def _yaml_lines(value: object) -> list[str]:
    """Faster than PyYAML's emitter by far, and lists are indented as yamllint wants it."""
    if isinstance(value, Mapping) and value:
        lines = []
        for key, item in value.items():
            inner = _yaml_lines(item)
            if isinstance(item, Mapping | list) and item:
                lines += [f"{_scalar(key)}:", *(f"  {line}" for line in inner)]
            else:
                lines.append(f"{_scalar(key)}: {inner[0]}")
        return lines
    if isinstance(value, list) and value:
        return [f"{'  ' if number else '- '}{line}" for item in value for number, line in enumerate(_yaml_lines(item))]
    return [_scalar(value)]


def _scalar(value: object) -> str:
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, float):
        return yaml.dump(value).splitlines()[0]
    return json.dumps(value)


# Files -------------------------------------------------------------------------------------------------------------


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

"""From a cluster's variables to the files of `clusters/<name>`: pure, and touches no file."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import yaml

from . import filters
from .context import ConfigMap, Context, context
from .specs import ROOT

TEMPLATES = ROOT / "roles/nativelink/templates"
# Made from dashboards/, and copied as they are: Grafana replaces the variables in them.
DASHBOARD_FILES = ROOT / "roles/nativelink/files/dashboards"

# The rendered files: the template without .j2, which is also the file below rendered/, and its condition in
# `Context.features`.
FILES = {
    "cas/cas.json5": "always",
    "cas/horizontalpodautoscaler.yaml": "cas_autoscaled",
    "cas/service-headless.yaml": "always",
    "cas/service-internal.yaml": "object_store",
    "cas/service.yaml": "always",
    "cas/statefulset.yaml": "always",
    "certificates/server.yaml": "certificates",
    "certificates/worker.yaml": "certificates",
    "edge/backendtrafficpolicy-cache.yaml": "envoy_gateway_with_a_single_cas",
    "edge/backendtrafficpolicy-execution.yaml": "envoy_gateway",
    "edge/backendtrafficpolicy-uploads.yaml": "envoy_gateway_with_several_cas",
    "edge/backendtrafficpolicy.yaml": "envoy_gateway",
    "edge/clienttrafficpolicy.yaml": "envoy_gateway",
    "edge/gateway.yaml": "gateway",
    "edge/grpcroute-cache.yaml": "gateway",
    "edge/grpcroute-execution.yaml": "gateway",
    "edge/grpcroute-results.yaml": "edge_writers",
    "edge/ingress.yaml": "ingress",
    "edge/securitypolicy-keys-execute.yaml": "edge_keys_execute",
    "edge/securitypolicy-keys-read.yaml": "edge_keys_read",
    "edge/securitypolicy-keys-write.yaml": "edge_keys_write",
    "edge/securitypolicy.yaml": "edge_access",
    "monitoring/alert-rules.yaml": "plain_alerts",
    "monitoring/alertmanagerconfig.yaml": "prometheus_operator",
    "monitoring/alerts.yaml": "prometheus_operator",
    "monitoring/collector-workers.yaml": "worker_metrics",
    "monitoring/collector.yaml": "collector",
    "monitoring/demand-deployment.yaml": "demand",
    "monitoring/demand-service.yaml": "demand",
    "monitoring/demand.lua": "demand",
    "monitoring/inhibit-rules.yaml": "plain_alerts",
    "monitoring/prometheus-deployment.yaml": "bundled_prometheus",
    "monitoring/prometheus-service.yaml": "bundled_prometheus",
    "monitoring/prometheus.yaml": "bundled_prometheus",
    "monitoring/prometheusrule.yaml": "prometheus_operator_with_demand",
    "monitoring/rules.yaml": "bundled_prometheus_with_demand",
    "monitoring/servicemonitor-kubelet.yaml": "prometheus_operator_with_kubelets",
    "monitoring/servicemonitor.yaml": "prometheus_operator",
    "policy/cas.yaml": "always",
    "policy/default-deny.yaml": "always",
    "policy/demand.yaml": "demand",
    "policy/dns.yaml": "always",
    "policy/prometheus.yaml": "bundled_prometheus",
    "policy/redis.yaml": "bundled_redis",
    "policy/scheduler.yaml": "always",
    "policy/workers-default-deny.yaml": "always",
    "policy/workers-dns.yaml": "always",
    "policy/workers.yaml": "always",
    "scheduler/deployment.yaml": "always",
    "scheduler/guard.sh": "redis",
    "scheduler/housekeeping.lua": "redis",
    "scheduler/redis-service.yaml": "bundled_redis",
    "scheduler/redis-statefulset.yaml": "bundled_redis",
    "scheduler/scheduler.json5": "always",
    "scheduler/service-workers.yaml": "always",
    "scheduler/service.yaml": "always",
    "worker/drain.sh": "always",
    "worker/isolation.yaml": "isolated_workers",
    "worker/precondition.sh": "always",
    "worker/serviceaccount.yaml": "always",
    "worker/start.sh": "always",
}
# Once a component: a prefix of these files' names, the component and the condition.
COMPONENT_FILES = ("poddisruptionbudget.yaml", "serviceaccount.yaml")
COMPONENTS = {
    "cas/": ("cas", "always"),
    "monitoring/collector-": ("collector", "collector"),
    "monitoring/collector-workers-": ("collector-workers", "worker_metrics"),
    "monitoring/demand-": ("demand", "demand"),
    "monitoring/prometheus-": ("prometheus", "bundled_prometheus"),
    "scheduler/": ("scheduler", "always"),
    "scheduler/redis-": ("redis", "bundled_redis"),
}
# Once a pool, in worker/<pool>/; the condition is in the pool's own `features`.
POOL_FILES = {
    "worker/pool/deployment.yaml": "always",
    "worker/pool/headroom-deployment.yaml": "headroom",
    "worker/pool/horizontalpodautoscaler.yaml": "hpa",
    "worker/pool/poddisruptionbudget.yaml": "always",
    "worker/pool/prepull-daemonset.yaml": "prepull",
    "worker/pool/scaledobject.yaml": "keda",
    "worker/pool/worker.json5": "always",
}
# Once a collector, whose component takes the place of `collector` in the name.
COLLECTOR_FILES = (
    "monitoring/collector-deployment.yaml",
    "monitoring/collector-service.yaml",
    "policy/collector.yaml",
)
# With nativelink_verify_image. The chart has neither.
VERIFY_JOB = "verify/job.yaml"
VERIFY_FILES = ("policy/verify.yaml", VERIFY_JOB)
# Once for each of the others that Prometheus scrapes.
PODMONITOR = "monitoring/podmonitor.yaml"
# For clients to copy (docs/clients.md). They are not applied, and the chart has none of them.
CLIENT_FILES = (
    "clients/bazel.bazelrc",
    "clients/buck2/BUCK",
    "clients/buck2/buck2.buckconfig",
    "clients/buck2/platforms.bzl",
    "clients/moon/workspace.yml",
    "clients/pants.toml",
    "clients/platforms/BUILD.bazel",
    "clients/remotetool.sh",
    "clients/siso/backend.star",
    "clients/siso/siso.env",
)
KUSTOMIZATION = "kustomization.yaml"
DASHBOARDS = "monitoring/dashboards/"
# YAML, but no object for the API server.
CONFIGURATIONS = frozenset(
    f"monitoring/{name}.yaml"
    for name in ("alert-rules", "collector", "collector-workers", "inhibit-rules", "prometheus", "rules")
)

FILTERS = ("quoted", "to_nice_yaml", "to_json", "as_text", "folded")
_SHEBANG = {".sh": "#!/bin/sh\n"}
_COMMENT = {".json5": "//", ".lua": "--"}
_DOCUMENT = {".yaml": "---\n", ".yml": "---\n"}


class RenderError(Exception):
    """A template that cannot be rendered, or whose output does not parse; the message names cluster and template."""


def tree(values: Mapping[str, Any]) -> dict[str, str]:
    """The files of a cluster by their path below `rendered/`, kustomization.yaml last; pure, touches no file.

    `values` are the cluster's effective variables (`specs.effective`), which are valid. Raises RenderError.
    """
    found = context(values)
    files = {path: _render(template, scope) for path, template, scope in _wanted(found)}
    if VERIFY_JOB in files:  # it is another Job with each change of the tree
        whole = hashlib.sha256("".join(files.values()).encode()).hexdigest()
        files[VERIFY_JOB] = _render(VERIFY_JOB, {**found.scope, "tree": whole})
    resources = sorted(path for path in files if is_object(path))
    dashboards = _dashboards() if found.features["dashboards"] else {}
    # Their links to the runbooks begin with the default of nativelink_runbook_url.
    runbooks = json.dumps(values["nativelink_runbook_url"])
    files |= {f"{DASHBOARDS}{name}.json": text.replace('"docs/alerts"', runbooks) for name, text in dashboards.items()}
    more = {"resources": resources, "dashboards": list(dashboards), "generated": config_maps(found)}
    files[KUSTOMIZATION] = _render(KUSTOMIZATION, {**found.scope, **more})
    return files


def parsed(values: Mapping[str, Any], template: str) -> dict[str, Any] | None:
    """The object of one of FILES as the tree would hold it, parsed; None where the cluster has none."""
    found = context(values)
    return _parse(_render(template, found.scope)) if found.features[FILES[template]] else None


def objects(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Path and YAML of each object of the tree; not parsed, which is most of the work. Raises RenderError.

    The labels name a cluster `any`, so that clusters that differ in nothing but their names have the same texts.
    """
    for path, template, scope in _wanted(context({**values, "cluster": "any"})):
        if is_object(path):
            with _named(template, {"cluster": values["cluster"]}):
                text = _body(template, {**scope, "cluster": values["cluster"]})
            yield path, text


def is_object(path: str) -> bool:
    """Whether a rendered file is an object for the API server."""
    return path.endswith(".yaml") and path not in CONFIGURATIONS


def config_maps(context: Context) -> list[ConfigMap]:
    """The ConfigMaps that kustomize generates from rendered files of a cluster."""
    return [
        replace(each, files=[path for path in each.files if context.features[FILES.get(path, "always")]])
        for each in (*context.config_maps.values(), *(pool.config_map for pool in context.pools))
    ]


def header(template: str) -> str:
    """The lines with which a rendered file begins."""
    suffix = Path(template).suffix
    origin = f"{_COMMENT.get(suffix, '#')} Generated by nativelink-gitops from {_origin(template)}: do not edit.\n"
    return _SHEBANG.get(suffix, "") + origin + _DOCUMENT.get(suffix, "")


def warm() -> None:
    """Compile all templates now, so that processes forked from this one need not."""
    for name in environment().list_templates():
        environment().get_template(name)


@cache
def _dashboards() -> dict[str, str]:
    """The JSON of Grafana's dashboards, by name. JSON has no comments, so they have no header."""
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(DASHBOARD_FILES.glob("*.json"))}


def _wanted(context: Context) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Path, template and names of each file."""
    scope, features = context.scope, context.features
    for template, condition in FILES.items():
        if features[condition]:
            yield template, template, scope
    for prefix, (component, condition) in COMPONENTS.items():
        if features[condition]:
            for name in COMPONENT_FILES:
                yield f"{prefix}{name}", f"component/{name}", {**scope, "component": component}
    for collector in context.collectors:
        for template in COLLECTOR_FILES:
            path = template.replace("collector", collector["component"])
            yield path, template, {**scope, "collector": collector}
    if features["prometheus_operator"]:
        for scrape in context.prometheus.scrapes:
            yield f"monitoring/podmonitor-{scrape['name']}.yaml", PODMONITOR, {**scope, "scrape": scrape}
    for template in VERIFY_FILES if context.variables["nativelink_verify_image"] else ():
        yield template, template, {**scope, "tree": ""}
    for template in CLIENT_FILES:
        yield template, template, scope
    for pool in context.pools:
        for template, condition in POOL_FILES.items():
            if pool.features[condition]:
                yield template.replace("/pool/", f"/{pool.name}/"), template, {**scope, "pool": pool}


def _render(template: str, scope: Mapping[str, Any]) -> str:
    with _named(template, scope):
        body = _body(template, scope)
        if template.endswith(".yaml"):
            _parse(body)
    return header(template) + body


def _origin(template: str) -> str:
    return f"roles/nativelink/templates/{template}.j2"


def _body(template: str, scope: Mapping[str, Any]) -> str:
    return environment().get_template(f"{template}.j2").render(scope)


@contextmanager
def _named(template: str, scope: Mapping[str, Any]) -> Iterator[None]:
    """Name cluster and template where one cannot be rendered."""
    try:
        yield
    except (jinja2.TemplateError, yaml.YAMLError, TypeError, ValueError) as error:
        raise RenderError(f"{scope['cluster']}: {_origin(template)}: {' '.join(str(error).split())}") from error


def _parse(text: str) -> dict[str, Any]:
    return yaml.load(text, yaml.CSafeLoader)


@cache
def environment() -> jinja2.Environment:
    """Jinja as the templates want it."""
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
    environment.filters |= {name: getattr(filters, name) for name in FILTERS}
    return environment

"""Writes what is generated: schema, docs/{variables,alerts/index}.md, parts of other pages, dashboards, the chart.

`make generate` runs it, and tests/lint/test_generated.py fails if a file is out of date.
"""

import json
import re
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from ansible_collections.nativelink.gitops.plugins.plugin_utils import monitoring, specs
from ansible_collections.nativelink.gitops.plugins.plugin_utils.specs import Option, Yaml

import dashboards
from hack import chart
from hack.chart.schema import TYPES

_TEMPLATE = {"type": "string", "pattern": r"\{[{%]"}


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of an inventory file; `#/$defs/variables` is that of a group_vars or host_vars file."""
    variables = {
        "type": "object",
        "properties": {name: _schema(option) for name, option in sorted(specs.options().items())},
        "propertyNames": {
            "anyOf": [{"enum": sorted(specs.options())}, {"not": {"pattern": f"^({'|'.join(specs.PREFIXES)})"}}]
        },
    }
    named = {"type": ["object", "null"]}
    group = {
        "type": ["object", "null"],
        "properties": {
            "hosts": {**named, "additionalProperties": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/variables"}]}},
            "vars": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/variables"}]},
            "children": {**named, "additionalProperties": {"$ref": "#/$defs/group"}},
        },
        "additionalProperties": False,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Inventory of NativeLink clusters: a host is a cluster",
        "description": "Generated from roles/*/meta/argument_specs.yml.",
        "type": "object",
        "additionalProperties": {"$ref": "#/$defs/group"},
        "$defs": {"group": group, "variables": variables},
    }


def _of_provider(option: Option) -> bool:
    return str(option.default).startswith("{{ __")


def _schema(option: Option) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    if option.description:
        schema["description"] = specs.MARKUP.sub(r"\1", " ".join(option.description))
    if option.default is not specs.MISSING and not _of_provider(option):
        schema["default"] = option.default
    if option.type == "list":
        schema["anyOf"] = [{"type": "array", "items": _schema(option.element)}, _TEMPLATE]
    elif option.type == "dict":
        keys: dict[str, Any] = {"type": "object"}
        if option.options:
            keys["properties"] = {name: _schema(key) for name, key in option.options.items()}
            keys["additionalProperties"] = False
            if required := [name for name, key in option.options.items() if key.required]:
                keys["required"] = required
        schema["anyOf"] = [keys, _TEMPLATE]
    elif option.choices:
        schema["anyOf"] = [{"enum": list(option.choices)}, _TEMPLATE]
    elif option.type in ("str", "path"):
        schema["type"] = "string"
    elif option.type in TYPES:
        schema["anyOf"] = [{"type": TYPES[option.type]}, _TEMPLATE]
    return schema


# The parts of docs/variables.md: a variable is in the last one whose expression the beginning of its name matches.
_TASKS = {
    "Name the cluster and the farm": "",
    "Sync the tree": "gitops_",
    "Let clients in": "ingress_|nativelink_(edge|hostname|client_peers|writer_peers)",
    "Store content": "storage_classes_|nativelink_(cas|copier|object_store)_",
    "Queue actions": "nativelink_(scheduler|redis)_",
    "Run actions": "node_agent_|nativelink_worker_|nativelink_workers_apart",
    "Scale workers": "keda_|nativelink_scaling",
    "Use mutual TLS": "worker_certificates_|nativelink_mutual_tls_",
    "Watch the farm": "nativelink_(metrics|traces|prometheus|kube_state|runbook|dashboards|log)",
    "Choose versions, images and release manifests": "(.+_(version|image|digest|manifest|sha256)|nativelink_image_.+)$",
}


def variables_markdown() -> str:
    """docs/variables.md: every variable of every role, by task, each with a heading."""
    example = (specs.ROOT / "roles/site/templates/hosts.yml.j2").read_text().partition(".json\n")[2]
    parts = [
        "<!-- Generated from roles/*/meta/argument_specs.yml, roles/*/defaults and hack/generate.py: change those. -->",
        "# Variables",
        "Set them in the inventory for a cluster (a host), for a group or for all clusters. A cluster needs these:",
        f"```yaml\n# inventories/farm/hosts.yml\n{example}```",
        "The first line that `make site` writes into this file lets editors with a YAML language server complete and\n"
        "check it. Write it into other files of the inventory, too.",
    ]
    tasks: dict[str, list[str]] = {task: [f"## {task}"] for task in _TASKS}
    for option in specs.options().values():
        task = next(task for task in reversed(_TASKS) if re.match(_TASKS[task], option.name))
        tasks[task] += _variable(option)
    return "\n\n".join(chain(parts, *tasks.values())) + "\n"


def _variable(option: Option) -> Iterator[str]:
    """The heading of a variable, its type, default and description, and a list for each of its nested dicts."""
    yield f"### {option.name}"
    yield _wrapped(f"{_kind(option)}. {_text(option)}", "")
    for path, nested in _structured(option.name, option):
        of = "each item of " if nested.type == "list" else ""
        keys = [_wrapped(f"- `{key.name}` ({_kind(key)}): {_text(key)}", "  ") for key in nested.options.values()]
        yield f"Keys of {of}`{path}`:\n\n" + "\n".join(keys)


def _structured(path: str, option: Option) -> Iterator[tuple[str, Option]]:
    if option.options:
        yield path, option
        for key in option.options.values():
            yield from _structured(f"{path}[].{key.name}" if option.type == "list" else f"{path}.{key.name}", key)


def _kind(option: Option) -> str:
    kind = f"list of {option.elements}" if option.type == "list" and option.elements != "raw" else option.type
    if option.required:
        return f"{kind}, **required**"
    if _of_provider(option):
        return f"{kind}, default the provider's"
    return kind if option.default is specs.MISSING else f"{kind}, default {_code(option.default)}"


def _text(option: Option) -> str:
    choices = f" One of {', '.join(_code(choice) for choice in option.choices)}." if option.choices else ""
    return (specs.MARKUP.sub(r"`\1`", " ".join(option.description)) + choices).strip()


def _wrapped(text: str, indent: str) -> str:
    wrapper = textwrap.TextWrapper(120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return wrapper.fill(text)


def _code(value: Yaml) -> str:
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    parts = text if " " in text or len(text) < 100 else text.replace(",", ",` `")  # for the end of a line
    return f"`{parts}`"


_ALERTS = """\
<!-- Generated from roles/nativelink/files/monitoring.yml: change that. -->

# Alerts

Each alert links to its page here: its meaning, its effect on users, and how to confirm it, mitigate it, and
how to prevent it. A critical alert is for a page, a warning for a ticket. Without an alert, start with the
[runbooks](../runbooks.md), which go by symptom.

The commands use the default namespaces. `POOL`, `NODE`, `POD` and `WORKER`, which is the pod of a worker, stand for
yours. The expressions are those of `clusters/prod`.

## Ask Prometheus

Some commands begin with `ask`. Define it once in your shell, for the bundled Prometheus:

```sh
ask() { kubectl -n nativelink exec deployment/nativelink-prometheus -- \\
  promtool query instant http://localhost:9090 "$1"; }
```

For one of the Prometheus Operator, which `kubectl get statefulsets -A -l managed-by=prometheus-operator` names:

<!-- needs: prometheus -->
```sh
ask() { kubectl -n monitoring exec statefulset/prometheus-kube-prometheus-stack-prometheus -- \\
  promtool query instant http://localhost:9090 "$1"; }
```

For any other, by its address:

<!-- needs: prometheus -->
```sh
ask() { curl -sS --get https://prometheus.example.com/api/v1/query --data-urlencode "query=$1"; }
```

This shows what fires now:

```sh
ask 'ALERTS{alertstate="firing"}'
```

## Where to begin

Several alerts at the same time often have one cause. Look first at those that are higher on this page.
"""


def alerts_markdown() -> str:
    """docs/alerts/index.md: the alerts with their severity, by what users see."""
    severities = {rule["alert"]: rule["severity"] for rules in monitoring.DATA["groups"].values() for rule in rules}
    parts = [_ALERTS]
    for symptom, alerts in monitoring.DATA["symptoms"].items():
        lines = [f"- [{name}]({name}.md) ({severities[name]}): {text}\n" for name, text in alerts.items()]
        parts.append(f"## {symptom}\n\n{''.join(lines)}")
    return "\n".join(parts)


# Where an alert has several expressions: what the cluster has, by what they need.
_VARIANTS = {
    "demand_of_all": "Scheduler in memory",
    "demand_by_pool": "Redis",
    "flux": "Flux",
    "argocd": "Argo CD",
}
# The values of clusters/prod that the expressions contain.
_PROD = {
    "cluster": "prod",
    "gitops_interval": "1m",
    "ingress_namespace": "envoy-gateway-system",
    "nativelink_mutual_tls_expires": "2027-01-31",
}
_STORE = {"max_bytes": 171798691840, "max_count": 9830400}


def _rules() -> dict[str, str]:
    """By alert: its severity, how long its expression has to be true, and the expression, as rendered for prod."""
    found: dict[str, list[str]] = {}
    for rule in (rule for rules in monitoring.DATA["groups"].values() for rule in rules):
        engine = "argocd" if "argocd" in rule["needs"] else "flux-system"
        values = specs.with_defaults({**specs.defaults(), **_PROD, "gitops_namespace": engine})
        names = monitoring.names(values, defaultdict(lambda: True), _STORE)
        variant = next((text for need, text in _VARIANTS.items() if need in rule["needs"]), "")
        lasting = f"after {rule['for']}" if "for" in rule else "immediately"
        said = f"<b>{rule['severity']}</b>, fires {lasting}" + f" ({variant})" * bool(variant)
        expression = _folded(rule["expr"] % names)
        found.setdefault(rule["alert"], []).append(
            f'<details markdown="1"><summary>{said}</summary>\n\n```promql\n{expression}\n```\n\n</details>'
        )
    return {alert: "\n\n".join(texts) for alert, texts in found.items()}


def _folded(expression: str) -> str:
    """A PromQL expression in short lines, none of which breaks a string."""
    kept = re.sub(r'"[^"]*"', lambda text: text[0].replace(" ", "\0"), expression)
    return textwrap.fill(kept, 110, break_long_words=False, break_on_hyphens=False).replace("\0", " ")


# What a cluster needs of other projects. Envoy Gateway's manifest has the Gateway API, too.
_MANIFESTS = ("keda_manifest", "ingress_envoy_gateway_manifest")
_VARIABLE = re.compile(r"\{\{ (\w+) \}\}")


def _manifests() -> str:
    """The commands that apply the release manifests, at the addresses that are the roles' defaults."""
    options = specs.options()

    def default(name: str) -> str:
        return _VARIABLE.sub(lambda found: default(found[1]), str(options[name].default))

    commands = [f"kubectl apply --server-side -f {default(name)}\n" for name in _MANIFESTS]
    return f"```sh\n{''.join(commands)}```"


def _marked(page: Path, name: str, text: str) -> str:
    """The page with another text between its markers of this name. A page without them raises ValueError."""
    before, rest = page.read_text().split(f"<!-- {name} -->\n")
    _, after = rest.split(f"<!-- /{name} -->")
    return f"{before}<!-- {name} -->\n\n{text}\n\n<!-- /{name} -->{after}"


def generated() -> dict[Path, str]:
    """The content of each generated file, by absolute path. Only a part of docs/helm.md and of alerts' pages is."""
    helm, alerts = specs.ROOT / "docs/helm.md", specs.ROOT / "docs/alerts"
    return {
        specs.ROOT / "schemas/cluster.schema.json": json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n",
        specs.ROOT / "docs/variables.md": variables_markdown(),
        specs.ROOT / "docs/alerts/index.md": alerts_markdown(),
        **{(page := alerts / f"{name}.md"): _marked(page, "rule", text) for name, text in _rules().items()},
        helm: _marked(helm, "manifests", _manifests()),
    } | dashboards.files()


if __name__ == "__main__":
    for path, text in generated().items():
        path.write_text(text)
    chart.write()  # it has copies of the dashboards

"""Writes what is generated: schema, docs/{variables,alerts/index}.md, a part of docs/helm.md, dashboards, the chart.

`make generate` runs it, and tests/lint/test_generated.py fails if a file is out of date.
"""

import json
import re
import textwrap
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
    return f"`{value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)}`"


_ALERTS = """\
<!-- Generated from roles/nativelink/files/monitoring.yml: change that. -->

# Alerts

Each alert links to its page here: what it means and what users see, how to confirm it, how to stop the bleeding, and
how to prevent it. A critical alert is for a page, a warning for a ticket. Without an alert, start with the
[runbooks](../runbooks.md), which go by symptom.

The commands use the default namespaces. `POOL`, `NODE`, `POD` and `WORKER`, which is the pod of a worker, stand for
yours. Those that begin with `kubectl -n nativelink exec deployment/nativelink-prometheus` ask the bundled Prometheus;
give one of your own the query at their end. This one shows what fires now:

```sh
kubectl -n nativelink exec deployment/nativelink-prometheus -- \\
  promtool query instant http://localhost:9090 'ALERTS{alertstate="firing"}'
```

Several alerts at once often have one cause. Look first at those that stand higher on this page.
"""


def alerts_markdown() -> str:
    """docs/alerts/index.md: the alerts with their severity, by what users see."""
    severities = {rule["alert"]: rule["severity"] for rules in monitoring.DATA["groups"].values() for rule in rules}
    parts = [_ALERTS]
    for symptom, alerts in monitoring.DATA["symptoms"].items():
        lines = [f"- [{name}]({name}.md) ({severities[name]}): {text}\n" for name, text in alerts.items()]
        parts.append(f"## {symptom}\n\n{''.join(lines)}")
    return "\n".join(parts)


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
    """The content of each generated file, by absolute path. Of docs/helm.md only a part is generated."""
    helm = specs.ROOT / "docs/helm.md"
    return {
        specs.ROOT / "schemas/cluster.schema.json": json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n",
        specs.ROOT / "docs/variables.md": variables_markdown(),
        specs.ROOT / "docs/alerts/index.md": alerts_markdown(),
        helm: _marked(helm, "manifests", _manifests()),
    } | dashboards.files()


if __name__ == "__main__":
    for path, text in generated().items():
        path.write_text(text)
    chart.write()  # it has copies of the dashboards

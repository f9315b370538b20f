"""The JSON Schema of the chart's values, from the argument specs, the formats of preflight, and Kubernetes' own API."""

import re
from collections.abc import Callable
from typing import Any

from ansible_collections.nativelink.gitops.plugins.plugin_utils import quantities, specs
from ansible_collections.nativelink.gitops.plugins.plugin_utils.specs import Option
from ansible_collections.nativelink.gitops.plugins.plugin_utils.validation import formats, kubernetes, rules, schemas

from . import values

Schema = dict[str, Any]
TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "dict": "object", "list": "array"}


def _whole(*patterns: re.Pattern[str]) -> Schema:
    """A text that one of the patterns of preflight describes."""
    return {"pattern": f"^({'|'.join(pattern.pattern for pattern in patterns)})$"}


def _or_empty(limits: Schema) -> Schema:
    """An empty text means: not set."""
    return {**limits, "pattern": f"^({limits['pattern'][1:-1]})?$"}


_LABEL = formats.LABEL.pattern
_NAME = {"pattern": rf"^{_LABEL}(\.{_LABEL})*$", "maxLength": 253}
_CPU = _whole(quantities.CPU)
# Not 0, and not a few bytes, which most likely lack their unit.
_SIZE = {"allOf": [_whole(quantities.SIZE), {"pattern": "[1-9]"}, {"pattern": "[A-Za-z]|[0-9]{7}"}]}
_BYTES = {
    "type": ["string", "number"],
    "if": {"not": {"enum": [0, "0"]}},  # of which a container may request or have none
    "then": {**_SIZE, "minimum": 2**20},
}
_KEY = {"pattern": f"^({kubernetes.PREFIX.pattern}/)?{kubernetes.NAME.pattern}$"}
# The prefix of a key of an annotation may have upper-case letters.
_ANNOTATION = f"^({kubernetes.PREFIX.pattern.replace('a-z', 'A-Za-z')}/)?{kubernetes.NAME.pattern}$"
_VALUE = {"pattern": f"^({kubernetes.NAME.pattern})?$"}
# Not `propertyNames`: Helm names a wrong place for its errors.
_LABELS = {"patternProperties": {_KEY["pattern"]: {"type": "string", **_VALUE}}, "additionalProperties": False}
_ANNOTATIONS = {"patternProperties": {_ANNOTATION: {"type": "string"}}, "additionalProperties": False}
# A format of preflight as a schema. What a schema cannot say, such as that a size is not tiny, the rules say.
_FORMATS: dict[Callable[..., Any], Schema] = {
    formats.dns_label: _whole(formats.LABEL),
    formats.dns_name: _NAME,
    formats.secret_name: _or_empty(_NAME),
    formats.pool_name: {**_whole(formats.LABEL), "maxLength": 36},
    formats.size: _SIZE,
    formats.share: {"anyOf": [_SIZE, {"allOf": [_whole(quantities.PERCENT), {"pattern": "[1-9]"}]}]},
    formats.duration: {
        "type": ["string", "integer"],
        "anyOf": [{"type": "integer"}, {"pattern": "^[0-9]{1,9}$"}, _whole(quantities.DURATION)],
        "minLength": 1,
        "minimum": 1,
        "maximum": 999999999,
    },
    formats.day: _whole(quantities.DAY),
    formats.cron: _whole(formats.CRON),
    formats.time_zone: _whole(formats.TIME_ZONE),
    formats.nativelink_version: _whole(formats.VERSION),
    formats.subject_name: _whole(formats.SUBJECT_NAME),
    formats.jwks: _whole(formats.JWKS),
    formats.bucket: _whole(formats.BUCKET),
    formats.store_prefix: _whole(formats.STORE_PREFIX),
    formats.store_endpoint: {"pattern": r"^https?://[^/?#@]+/?$"},
    formats.tag: _whole(formats.TAG),
    formats.digest: _whole(formats.DIGEST),
    formats.image: _whole(formats.IMAGE_NAME),
    formats.host_and_port: {"pattern": rf"^({_LABEL}(\.{_LABEL})*|\[[0-9a-f:.]+\]):[0-9]{{1,5}}$"},
    formats.instance_name: _whole(formats.INSTANCE_NAME),
    formats.some: {"minItems": 1},
    formats.environment: {
        "patternProperties": {f"^{formats.ENVIRONMENT_VARIABLE.pattern}$": {"type": ["string", "number", "boolean"]}},
        "additionalProperties": False,
    },
    formats.flux_interval: {"pattern": "^([0-9]{1,5}h)?([0-9]{1,7}m)?([0-9]{1,9}s)?$", "allOf": [{"pattern": "[1-9]"}]},
    formats.otlp_receiver: {"pattern": r"^https?://[^/?#]+:[0-9]{1,5}/?$"},
    formats.percent: {"minimum": 0, "maximum": 100},
}
# An image without variables for its tag and its digest may have both.
_TAGGED_IMAGE = {"pattern": f"^{formats.IMAGE_NAME.pattern}(:{formats.TAG.pattern})?(@{formats.DIGEST.pattern})?$"}
_AMOUNTS = {
    "type": "object",
    "properties": {
        "cpu": {"type": ["string", "number"], **_CPU, "minimum": 0},
        "memory": _BYTES,
        "ephemeral-storage": _BYTES,
    },
    # Of device plugins, and huge pages.
    "patternProperties": {"(/|^hugepages-)": {"type": ["string", "number"]}},
    "additionalProperties": False,
}
_IPV4 = r"[0-9]{1,3}(\.[0-9]{1,3}){3}/([0-9]|[12][0-9]|3[0-2])"
_IPV6 = "[0-9a-fA-F:]+/([0-9]|[1-9][0-9]|1[01][0-9]|12[0-8])"
_PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
_RANGE = {"pattern": f"^({_IPV4}|{_IPV6})$"}
# What the API server checks beyond its own schema.
_STRICTER: dict[tuple[str, str], Schema] = {
    ("Toleration", "key"): _KEY,
    ("Toleration", "value"): _VALUE,
    ("LabelSelector", "matchLabels"): _LABELS,
    ("LabelSelectorRequirement", "key"): _KEY,
    ("LabelSelectorRequirement", "values"): {"items": {"type": "string", **_VALUE}},
    # A rule without peers allows every address, also those where a node's credentials are.
    ("NetworkPolicyEgressRule", ""): {"required": ["to"]},
    ("NetworkPolicyEgressRule", "to"): {"minItems": 1},
    ("NetworkPolicyPeer", ""): {"minProperties": 1},
    ("NetworkPolicyPort", "endPort"): _PORT,
    ("NetworkPolicyPort", "port"): {
        "anyOf": [_PORT, {"type": "string", "allOf": [_whole(kubernetes.PORT), {"pattern": "[a-z]"}]}]
    },
    ("Toleration", "operator"): {"enum": ["Exists", "Equal"]},
    ("Toleration", "effect"): {"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
    ("LabelSelectorRequirement", "operator"): {"enum": ["In", "NotIn", "Exists", "DoesNotExist"]},
    ("NetworkPolicyPort", "protocol"): {"enum": ["TCP", "UDP", "SCTP"]},
    ("HPAScalingRules", "selectPolicy"): {"enum": ["Max", "Min", "Disabled"]},
    ("HPAScalingRules", "stabilizationWindowSeconds"): {"minimum": 0, "maximum": 3600},
    ("HPAScalingRules", "tolerance"): {"type": ["string", "number"], **_CPU, "minimum": 0},
    ("HPAScalingRules", "policies"): {"minItems": 1},
    ("HPAScalingPolicy", "type"): {"enum": ["Pods", "Percent"]},
    ("HPAScalingPolicy", "value"): {"minimum": 1},
    ("HPAScalingPolicy", "periodSeconds"): {"minimum": 1, "maximum": 1800},
    ("IPBlock", "cidr"): _RANGE,
    ("IPBlock", "except"): {"items": _RANGE},
}


def schema() -> Schema:
    """The content of values.schema.json."""
    properties: dict[str, Any] = {
        "cluster": {"description": values.CLUSTER, "type": "string", "pattern": f"^({_LABEL})?$", "maxLength": 52},
        "global": {"description": "Helm's own, for all charts of a parent.", "type": "object"},
    }
    definitions: dict[str, Schema] = {}
    for name, option in values.variables().items():
        path = values.path_of(name)
        found = _option(option, name, definitions)
        if len(path) == 1:
            properties[path[0]] = found
        else:
            group = properties.setdefault(
                path[0], {"type": "object", "properties": {}, "additionalProperties": False, "required": []}
            )
            group["properties"][path[1]] = found
            group["required"].append(path[1])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Values of the chart nativelink",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "required": [name for name in properties if name != "global"],
        "$defs": definitions,
    }


def _option(option: Option, pattern: str, definitions: dict[str, Schema]) -> Schema:
    found: Schema = {}
    if option.description:
        found["description"] = values.description(option)
    if option.type in TYPES:
        found["type"] = TYPES[option.type]
    if option.choices and option.type != "list":
        found["enum"] = list(option.choices)
    if option.type == "list":
        found["items"] = _option(option.element, f"{pattern}[]", definitions)
    if option.options and option.type == "dict":
        found |= {
            "properties": {
                values.camel(name): _option(key, f"{pattern}.{name}", definitions)
                for name, key in option.options.items()
            },
            "additionalProperties": False,
        }
        if required := [values.camel(name) for name, key in option.options.items() if key.required]:
            found["required"] = required
    if pattern == "nativelink_scheduler_platform_properties":
        found["additionalProperties"] = {"enum": ["exact", "minimum", "priority", "ignore"]}
    if pattern.endswith((".requests", ".limits")):
        found |= _AMOUNTS
    defined = (kind for ending, (kind, _) in kubernetes.CHECKS.items() if re.search(rf"[_.]{ending}(\[\])?$", pattern))
    if option.type == "dict" and (kind := next(defined, "")):
        found |= {"$ref": f"#/$defs/{_defined(kind, definitions)}"}
        found.pop("additionalProperties", None)
    limits: Schema = {}
    for check in formats.checks(pattern):
        limits |= _limit(check, pattern)
    if pattern in values.REQUIRED:
        limits["minLength"] = 1
    elif limits and option.type == "str" and (option.default == "" or specs.holds_template(option.default)):
        limits = _or_empty(limits)
    return found | limits


def _limit(check: Callable[..., Any], pattern: str) -> Schema:
    if check is formats.image and pattern not in rules.IMAGE_VERSIONS:
        return _TAGGED_IMAGE
    if check is formats.text_values:
        return _ANNOTATIONS if pattern.endswith("annotations") else _LABELS
    if isinstance(check, formats.Within):
        return {"minimum": check.low, "maximum": check.high}
    return _FORMATS[check]


def _defined(name: str, definitions: dict[str, Schema]) -> str:
    """A definition of the oldest supported Kubernetes, and those that it refers to, become a part of `definitions`."""
    short = name.rpartition(".")[2]
    if short not in definitions:
        definitions[short] = {}
        version = schemas.shipped_version(specs.defaults()["preflight_minimum_kubernetes"])
        definitions[short] = _tightened(schemas.definitions(version)[name], short, definitions)
    return short


def _tightened(node: Any, owner: str, definitions: dict[str, Schema]) -> Any:
    if isinstance(node, list):
        return [_tightened(item, owner, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if reference := node.get("$ref"):
        return {"$ref": f"#/$defs/{_defined(reference.rpartition('/')[2], definitions)}"}
    kept = {
        key: item
        for key, item in node.items()
        if key not in ("description", "properties") and "x-kubernetes" not in key
    }
    found = {key: _tightened(item, owner, definitions) for key, item in kept.items()}
    if "properties" in node:
        found["properties"] = {
            name: _tightened(item, owner, definitions) | _STRICTER.get((owner, name), {})
            for name, item in node["properties"].items()
        }
        found |= _STRICTER.get((owner, ""), {})
    return found

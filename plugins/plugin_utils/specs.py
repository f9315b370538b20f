"""The variables of all roles, read from roles/*/meta/argument_specs.yml and the roles' defaults."""

import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = ("preflight", "storage_classes", "keda", "ingress", "node_agent", "worker_certificates", "nativelink", "gitops")
# Variables of earlier releases, and their names now.
RENAMED = {
    "low_latency_enabled": "node_agent_low_latency",
    "low_latency_namespace": "node_agent_namespace",
    "low_latency_image": "node_agent_image",
    "low_latency_image_version": "node_agent_image_version",
    "low_latency_image_digest": "node_agent_image_digest",
    "low_latency_node_selector": "node_agent_node_selector",
    "low_latency_tolerations": "node_agent_tolerations",
    "low_latency_selinux_type": "node_agent_selinux_type",
    "low_latency_wait_timeout": "node_agent_wait_timeout",
}
# The connection variables (cluster_*) belong to no role. The preflight role lists them, and they are required.
PREFIXES = ("cluster_", *(f"{role}_" for role in ROLES))
# Ansible's markup for code, a value and an option. The text in the brackets may contain a pair of brackets.
MARKUP = re.compile(r"\b[CVO]\(((?:[^()]|\([^()]*\))*)\)")
# A value that YAML can hold: None, bool, int, float, str, and lists and dicts of these.
Yaml = Any
Values = Mapping[str, Any]
MISSING: Yaml = type("Missing", (), {"__repr__": lambda self: "MISSING", "__deepcopy__": lambda self, memo: self})()


@dataclass(frozen=True)
class Option:
    """A variable, or a key of a variable's value. `type` and `elements` have the same values as in argument_specs."""

    name: str
    role: str
    type: str = "str"
    elements: str = "raw"
    required: bool = False
    choices: tuple[Any, ...] = ()
    default: Any = MISSING
    description: tuple[str, ...] = ()
    options: Mapping[str, "Option"] = field(default_factory=dict)
    no_log: bool = False

    @property
    def element(self) -> "Option":
        """The option that describes each item of a list."""
        return Option(
            self.name, self.role, self.elements, choices=self.choices, options=self.options, no_log=self.no_log
        )


@dataclass(frozen=True)
class Unresolved:
    """A value whose template failed, or that cannot be decrypted."""

    problem: str
    remedy: str


class DecryptionError(ValueError):
    """A vaulted value that cannot be decrypted. The message gives its place and the reason."""


@cache
def options() -> Mapping[str, Option]:
    """Every variable of every role, by name."""
    return {
        option.name: option
        for role in ROLES
        for option in _options(
            role, _load(ROOT / "roles" / role / "meta/argument_specs.yml").get("argument_specs", {}).get("main", {})
        ).values()
    }


@cache
def defaults() -> Mapping[str, Any]:
    """The defaults of all roles as written in defaults/main.yml or defaults/main/, with their templates unresolved."""
    return {name: value for name, value in written().items() if not name.startswith("__")}


@cache
def written() -> Mapping[str, Any]:
    """All that the roles' defaults write, also the facts that they refer to, such as ``__ingress_provider_NAME``."""
    files = (path for role in ROLES for path in sorted((ROOT / "roles" / role / "defaults").rglob("*.yml")))
    return {name: value for path in files for name, value in _load(path).items()}


def effective(variables: Mapping[str, Any], template: Callable[[Any], Any]) -> dict[str, Any]:
    """Plain Python values of the known variables of one cluster that are set, and the cluster's name as `cluster`.

    Values keep the type that they have in the inventory: the roles read the same ones. `variables` are the host's own,
    with the role defaults beneath if templates refer to them. `template` is Ansible's templar over the same variables;
    it is called only for values that hold a template. If it raises, the value is an `Unresolved`.
    """
    values: dict[str, Any] = {"cluster": str(variables["inventory_hostname"])}
    for name, option in options().items():
        value = variables.get(name, option.default)
        if value is MISSING:
            continue
        if value is option.default and name not in templated_defaults():
            values[name] = deepcopy(value)
            continue
        try:
            values[name] = _plain(value, template)
        except DecryptionError as error:
            remedy = "give Ansible the vault password, with --ask-vault-pass or --vault-password-file"
            values[name] = Unresolved(f"cannot be decrypted ({error})", remedy)
        except Exception as error:  # a lookup plugin may raise anything, and the user has to see it
            problem = f"its template fails ({' '.join(str(error).split())})"
            values[name] = Unresolved(problem, "define what it refers to, or write the value itself")
    return values


def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `values` that also has the defaults of nested keys, such as those of a worker pool."""
    return {
        name: _filled(options()[name], value) if name in options() else deepcopy(value)
        for name, value in values.items()
    }


def namespaces(values: Values) -> tuple[str, ...]:
    """Names of the variables whose namespaces a cluster has for itself: the node agent's only if it runs."""
    agent = ("node_agent_namespace",) if values.get("node_agent_guard") or values.get("node_agent_low_latency") else ()
    return ("nativelink_namespace", "nativelink_workers_namespace", *agent)


def known(values: Values) -> dict[str, Any]:
    """Those of `values` that are variables of a role."""
    return {name: value for name, value in values.items() if name in options()}


def _load(path: Path) -> dict[str, Any]:
    return (yaml.load(path.read_text(), yaml.CSafeLoader) or {}) if path.is_file() else {}


def _options(role: str, spec: Mapping[str, Any], top: bool = True) -> dict[str, Option]:
    found = {}
    for name, entry in (spec.get("options") or {}).items():
        text = entry.get("description") or entry.get("short_description") or ()
        found[name] = Option(
            name=name,
            role=role,
            type=entry.get("type", "str"),
            elements=entry.get("elements", "raw"),
            required=entry.get("required", False),
            choices=tuple(entry.get("choices") or ()),
            default=defaults().get(name, entry.get("default", MISSING)) if top else entry.get("default", MISSING),
            description=(text,) if isinstance(text, str) else tuple(text),
            options=_options(role, entry, top=False),
            no_log=entry.get("no_log", False),
        )
    return found


@cache
def templated_defaults() -> frozenset[str]:
    """Names of the variables whose role default contains a template."""
    return frozenset(name for name, option in options().items() if holds_template(option.default))


def holds_template(value: Yaml) -> bool:
    """Return whether `value` contains a template, in a text at any depth."""
    if isinstance(value, Mapping):
        return any(map(holds_template, value.values()))
    if isinstance(value, list | tuple):
        return any(map(holds_template, value))
    return isinstance(value, str) and ("{{" in value or "{%" in value or "{#" in value)


def mentioned(value: Yaml) -> set[str]:
    """The words in the templates of a value. A variable among them is there to be used in others."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return set().union(*map(mentioned, value))
    return set(re.findall(r"\w+", value)) if holds_template(value) else set()


def _plain(value: Yaml, template: Callable[[Any], Any] | None = None) -> Yaml:
    """`value` with its templates resolved, and as built-in types: Ansible's own types are subclasses of them."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _plain(template(value)) if template and holds_template(value) else "".join((value,))
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item, template) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, template) for item in value]
    # A vault string, for example, or else a date: YAML reads an unquoted 2026-01-01 as one.
    return _plain(template(value)) if template else str(value)


def _filled(option: Option, value: Yaml) -> Yaml:
    if option.type == "list" and isinstance(value, list) and option.options:
        return [_filled(option.element, item) for item in value]
    if option.type == "dict" and isinstance(value, Mapping) and option.options:
        missing = {
            name: deepcopy(key.default)
            for name, key in option.options.items()
            if name not in value and key.default is not MISSING
        }
        return {
            name: _filled(option.options[name], item) if name in option.options else deepcopy(item)
            for name, item in {**value, **missing}.items()
        }
    return deepcopy(value)

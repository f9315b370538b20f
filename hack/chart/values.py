"""The values of the chart: the variables of the inventory under other names, and what checks and explains them."""

import re
import textwrap
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.vars.manager import VariableManager
from ansible_collections.nativelink.gitops.plugins.plugin_utils import filters, specs, templating
from ansible_collections.nativelink.gitops.plugins.plugin_utils.specs import Option

POOLS = "nativelink_worker_pools"
# A value whose name begins with one of these is a part of this mapping.
_GROUPS = ("cas", "scheduler", "redis_exporter", "redis", "headroom", "edge", "collector", "prometheus", "worker")
_GROUPS += ("log", "traces", "metrics", "mutual_tls", "object_store")
# They are named like a mapping.
_NAMES = {
    "nativelink_edge": ("edge", "kind"),
    "nativelink_prometheus": ("prometheus", "provider"),
    "nativelink_metrics": ("metrics", "senders"),
    POOLS: ("workerPools",),
}
# What the render needs of other roles.
OTHERS = ("keda_namespace", "ingress_provider", "ingress_namespace", "ingress_class_name")
OTHERS += ("gitops_provider", "gitops_namespace", "gitops_interval")
# The release has a namespace, the trees have a folder, Ansible provisions, only a playbook copies from pod to pod, and
# `helm test` is the chart's own.
_ABSENT = (
    "nativelink_namespace",
    "nativelink_clusters_dir",
    "nativelink_base_revision",
    "nativelink_object_store_ca_file",
    "nativelink_cas_layout_from",
    "nativelink_cas_shards",
    "nativelink_cas_shards_next",
    "nativelink_copier_version",
    "nativelink_copier_image",
    "nativelink_copier_image_digest",
    "nativelink_copier_rate",
    "nativelink_verify_image",
)
ALLOWED = "nativelink_allow_changes"
# Where the description of the variable says what the bootstrap does.
_DESCRIPTIONS = {
    "ingress_class_name": "Name of the GatewayClass or IngressClass of the edge. Empty for that of the provider.",
    "ingress_namespace": "Namespace of the proxies, from which NetworkPolicies admit clients. Empty for that of the "
    "provider; with `existing`, write it, or set `clientPeers`.",
    "ingress_provider": "Controller of the edge: `envoy-gateway`, another `existing` one, or `none`.",
    "gitops_namespace": "Namespace of the engine, for its alerts. Empty for that of the provider.",
    ALLOWED: "Breaking changes that an upgrade may make: `cas_replicas`, `cas_store`. The others that the chart "
    "refuses need steps by hand, which its messages give. Remove the permission after the upgrade.",
    "nativelink_cas_storage_class": "StorageClass of the CAS volumes. It is required.",
    "nativelink_priority_classes": "Whether CAS, scheduler and Redis have the PriorityClass "
    "`nativelink-control-plane`, which must exist. On a full node the kubelet then evicts workers first.",
}
CLUSTER = "The name of the cluster, a label of all objects. Empty for the name of the release."
REQUIRED = ("nativelink_cas_storage_class",)

Path = tuple[str, ...]


def camel(name: str) -> str:
    """A name in camelCase, as Helm's users write values."""
    first, *others = name.split("_")
    return first + "".join(other.capitalize() for other in others)


def path_of(variable: str) -> Path:
    """The place of a variable in the values: `("cas", "replicas")` for `nativelink_cas_replicas`."""
    if variable in _NAMES:
        return _NAMES[variable]
    if variable in OTHERS:
        group, _, name = variable.partition("_")
        return group, camel(name)
    name = variable.removeprefix("nativelink_")
    group = next((group for group in _GROUPS if name.startswith(f"{group}_")), "")
    return (camel(group), camel(name.removeprefix(f"{group}_"))) if group else (camel(name),)


def variables() -> dict[str, Option]:
    """The variables that are values of the chart."""
    found = {
        name: option
        for name, option in specs.options().items()
        if name in OTHERS or (option.role == "nativelink" and name not in _ABSENT)
    }
    # The API server refuses the other changes for which preflight has a permission.
    return {**found, ALLOWED: replace(found[ALLOWED], choices=("cas_replicas", "cas_store"))}


def helm_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the chart for a cluster's variables (`specs.effective`), as far as they are not its defaults.

    Helm merges mappings, so a key of a default that the cluster lacks is None.
    """
    found: dict[str, Any] = {}
    for name, option in variables().items():
        if name not in values:
            continue
        value = _pools(values[name]) if name == POOLS and isinstance(values[name], list) else values[name]
        default = _pools(option.default) if name == POOLS else option.default
        if name in specs.templated_defaults() or type(value) is not type(default) or value != default:
            *groups, last = path_of(name)
            place = found.setdefault(groups[0], {}) if groups else found
            place[last] = _over(default, value)
    return found


def reference(name: str = "reference") -> dict[str, dict[str, Any]]:
    """The effective variables of each cluster of inventories/reference, or of another one, by the cluster's name."""
    loader = DataLoader()
    loader.set_basedir(str(specs.ROOT))
    inventory = InventoryManager(loader, sources=[str(specs.ROOT / "inventories" / name / "hosts.yml")])
    manager = VariableManager(loader=loader, inventory=inventory)
    return {
        host.name: templating.host_values(manager.get_vars(host=host, include_hostvars=False), loader)
        for host in inventory.get_hosts()
    }


def stated(cluster: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a user writes for a cluster of the inventory: none that are there without them."""
    given = {name: value for name, value in cluster.items() if name not in specs.templated_defaults()}
    given["nativelink_cas_storage_class"] = (
        given["nativelink_cas_storage_class"] or cluster["storage_classes_list"][0]["name"]
    )
    return helm_values(given)


def values_yaml() -> str:
    """The file values.yaml, with a comment for each value that helm-docs reads."""
    lines = [
        "---",
        "# Generated by `make generate` from the variables of the roles: do not edit.",
        "# docs/variables.md of the project says more about each.",
        "",
        f"# -- {CLUSTER}",
        'cluster: ""',
    ]
    groups: dict[str, list[tuple[Path, Option]]] = {}
    for name, option in variables().items():
        groups.setdefault(path_of(name)[0], []).append((path_of(name), option))
    for group, members in groups.items():
        nested = len(members[0][0]) > 1
        lines += ["", f"{group}:"] if nested else [""]
        for path, option in members:
            indent = "  " if nested else ""
            lines += [
                f"{indent}# -- {line}" if not number else f"{indent}# {line}"
                for number, line in enumerate(described(option))
            ]
            default = _pools(option.default) if option.name == POOLS else option.default
            if option.name in specs.templated_defaults():
                default = ""  # it depends on other values, and _context.tpl fills it in
            text = filters.to_nice_yaml({path[-1]: default})
            lines += [f"{indent}{line}" for line in text.splitlines()]
    return "\n".join(lines) + "\n"


def described(option: Option) -> list[str]:
    """The description of a variable, in the names of the chart, as lines."""
    text = description(option)
    if option.choices and option.name not in _DESCRIPTIONS:
        text += f" One of {', '.join(str(choice) or 'empty' for choice in option.choices)}."
    return textwrap.wrap(text, 110, break_long_words=False, break_on_hyphens=False)


def description(option: Option) -> str:
    """The description of a variable, in the names of the chart."""
    return _DESCRIPTIONS.get(option.name) or translated(specs.MARKUP.sub(r"`\1`", " ".join(option.description)))


def translated(text: str) -> str:
    """A text in which the names of variables, and of the keys of pools, are those of the chart."""
    for old, new in names():
        text = re.sub(rf"\b{old}\b", new, text)
    return text


def names() -> list[tuple[str, str]]:
    """The names of variables and of the keys of pools in messages, and those of the chart, the longest first."""
    found = {name: ".".join(path_of(name)) for name in variables()}
    found |= {name: camel(name) for name in specs.options()[POOLS].options if "_" in name}
    found["nativelink_namespace"] = "the namespace of the release"
    return sorted(found.items(), key=lambda item: (-len(item[0]), item[0]))


def _pools(value: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{camel(key): item for key, item in pool.items()} for pool in value]


def _over(default: Any, value: Any) -> Any:
    """A value that replaces a default although Helm merges the two."""
    if isinstance(default, dict) and isinstance(value, dict):
        missing = {key: None for key in default if key not in value}
        return {key: _over(default.get(key), item) for key, item in value.items()} | missing
    return deepcopy(value)


def operands() -> dict[str, str]:
    """The operand of Go for each variable in a template, and for the keys of pools that are numbers.

    Helm makes a float of a number, which Go would not compare with one, and would show with an exponent.
    """
    found = {name: f"$.Values.{'.'.join(path_of(name))}" for name in variables()}
    found |= {name: f"$context.{name}" for name in specs.templated_defaults()}
    found["nativelink_namespace"] = "$.Release.Namespace"
    pool = specs.options()[POOLS].options
    numbers = {f"pool.{name}": f"$pool.{name}" for name, key in pool.items() if key.type == "int"}
    numbers |= {name: found[name] for name, option in variables().items() if option.type == "int"}
    return found | {name: f"(int64 {operand})" for name, operand in numbers.items()}

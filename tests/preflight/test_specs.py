from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils import specs, validation

from hack import generate

ROOT = Path(__file__).resolve().parents[2]
ROLES = ("preflight", "storage_classes", "keda", "ingress", "node_agent", "nativelink", "gitops")


def documents(role: str) -> tuple[dict[str, Any], dict[str, Any]]:
    folder = ROOT / "roles" / role
    spec = yaml.safe_load((folder / "meta/argument_specs.yml").read_text())
    files = (yaml.safe_load(path.read_text()) for path in (folder / "defaults").rglob("*.yml"))
    defaults = {name: value for file in files for name, value in file.items() if not name.startswith("__")}
    return spec["argument_specs"]["main"]["options"], defaults


@pytest.mark.parametrize("role", ROLES)
def test_a_variable_is_required_or_has_a_default(role: str) -> None:
    options, defaults = documents(role)
    required = {name for name, says in options.items() if says.get("required")}

    assert set(defaults) == set(options) - required
    for name, says in options.items():
        # If the spec repeats the default, both are the same.
        assert says.get("default", defaults.get(name)) == defaults.get(name), name


@pytest.mark.parametrize("role", ROLES)
def test_every_option_is_typed_and_described(role: str) -> None:
    def check(options: dict[str, Any], path: str) -> None:
        for name, says in options.items():
            assert says.get("type"), f"{path}{name}"
            assert says.get("description"), f"{path}{name}"
            check(says.get("options", {}), f"{path}{name}.")

    check(documents(role)[0], "")


@pytest.mark.parametrize("role", ROLES)
def test_variables_carry_their_roles_prefix(role: str) -> None:
    connection = {"cluster_kubeconfig", "cluster_context"} if role == "preflight" else set()
    assert {name for name in documents(role)[0] if not name.startswith(f"{role}_")} == connection


def test_defaults_have_no_fault() -> None:
    stated = {"cluster_kubeconfig": "/k", "cluster_context": "prod", "nativelink_cas_storage_class": "gp3"}
    values = effective(lambda value: "envoy-gateway-system", **stated)
    assert [str(fault) for fault in validation.static_findings({"prod": values})] == []


def effective(template: Any = None, **variables: Any) -> dict[str, Any]:
    return specs.effective({"inventory_hostname": "prod", **variables}, template or (lambda value: value))


def test_values_override_defaults() -> None:
    values = effective(nativelink_cas_volume_size="1Ti")
    assert values["cluster"] == "prod"
    assert values["nativelink_cas_volume_size"] == "1Ti"
    assert values["nativelink_namespace"] == "nativelink"
    assert "cluster_context" not in values


def test_values_keep_their_type_because_the_roles_read_the_same_ones() -> None:
    given = {
        "nativelink_cas_replicas": "5",
        "keda_allow_downgrade": "yes",
        "nativelink_collector_version": 1,
        "nativelink_worker_pools": [{"name": 7, "slots": "12", "persistent_workers": "no"}],
    }
    values = effective(**given)

    assert {name: values[name] for name in given} == given


def test_values_are_plain() -> None:
    class Text(str):
        __slots__ = ()

    (pair,) = effective(nativelink_scheduler_platform_properties={Text("pool"): Text("exact")})[
        "nativelink_scheduler_platform_properties"
    ].items()
    assert [type(text) for text in pair] == [str, str]


def test_only_values_with_a_template_are_templated() -> None:
    seen: list[str] = []
    given = {"nativelink_hostname": "{{ a }}", "my_own": "{{ b }}", "keda_namespace": "k"}
    effective(lambda value: seen.append(value) or "x", **given)
    assert "{{ a }}" in seen
    assert not {"{{ b }}", "k"} & set(seen)
    assert all("{{" in value for value in seen)


def test_a_template_that_fails_is_named() -> None:
    def broken(value: str) -> str:
        raise ValueError("no\nsuch thing")

    assert effective(broken, nativelink_hostname="{{ a }}")["nativelink_hostname"] == specs.Unresolved(
        "its template fails (no such thing)", "define what it refers to, or write the value itself"
    )


def test_defaults_of_a_pool_are_filled_in() -> None:
    given = {"nativelink_worker_pools": [{"name": "a"}, {"name": "b", "max_replicas": 5, "resources": {"limits": {}}}]}
    before = copy.deepcopy(given)

    one, other = specs.with_defaults(given)["nativelink_worker_pools"]

    assert (one["min_replicas"], one["max_replicas"], one["slots"]) == (4, 200, 0)
    assert one["resources"] == {"requests": {"cpu": "4", "memory": "16Gi"}, "limits": {"cpu": "8", "memory": "16Gi"}}
    assert (other["max_replicas"], other["resources"]) == (5, {"limits": {}})
    one["resources"]["limits"]["cpu"] = "changed"
    assert given == before
    assert specs.with_defaults(given)["nativelink_worker_pools"][0]["resources"]["limits"]["cpu"] == "8"


def test_an_item_of_a_list_is_as_secret_as_the_list() -> None:
    tokens = specs.Option("tokens", "gitops", "list", "str", required=True, default=[], no_log=True)
    assert tokens.element == specs.Option("tokens", "gitops", "str", no_log=True)


def test_markup_may_hold_brackets() -> None:
    said = "Write C(lookup('env', 'A')) (or V(a)), as in O(b)."
    assert specs.MARKUP.sub(r"`\1`", said) == "Write `lookup('env', 'A')` (or `a`), as in `b`."


def test_generated_files_are_current() -> None:
    stale = [str(path.relative_to(ROOT)) for path, text in generate.generated().items() if path.read_text() != text]
    assert stale == [], "run: make generate"


SCHEMA = json.loads((ROOT / "schemas/cluster.schema.json").read_text())


def complaints(inventory: Any) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(inventory)]


def inventory(**variables: Any) -> dict[str, Any]:
    return {"all": {"children": {"europe": {"hosts": {"prod": variables, "dev": None}}}, "vars": {"region": "eu"}}}


def test_the_schema_accepts_a_sound_inventory() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert complaints(inventory()) == []
    assert complaints(inventory(nativelink_cas_replicas="{{ shards }}", nativelink_worker_pools=[{"name": "a"}])) == []


@pytest.mark.parametrize("file", sorted((ROOT / "inventories").glob("*/*.yml")), ids=lambda file: file.parent.name)
def test_the_schema_accepts_our_inventories(file: Path) -> None:
    assert complaints(yaml.safe_load(file.read_text())) == []


@pytest.mark.parametrize("file", sorted((ROOT / "inventories").glob("*/*_vars/*.yml")), ids=lambda file: file.stem)
def test_the_schema_accepts_our_files_of_variables(file: Path) -> None:
    schema = {**SCHEMA["$defs"]["variables"], "$defs": SCHEMA["$defs"]}
    assert list(jsonschema.Draft202012Validator(schema).iter_errors(yaml.safe_load(file.read_text()))) == []


@pytest.mark.parametrize(
    "variables",
    [
        {"nativelink_cas_replica": 3},
        {"nativelink_cas_replicas": "three"},
        {"nativelink_edge": "loadbalancer"},
        {"nativelink_worker_pools": [{"name": "a", "max_replica": 3}]},
        {"nativelink_worker_pools": [{"slots": 3}]},
        {"nativelink_cas_node_selector": ["a"]},
    ],
)
def test_the_schema_refuses_a_faulty_inventory(variables: dict[str, Any]) -> None:
    assert complaints(inventory(**variables)) != []

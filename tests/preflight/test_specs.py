import copy
import json
from typing import Any

import jsonschema
import pytest
import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils import specs

from testkit.trees import ROOT

ROLES = sorted({option.role for option in specs.options().values()})


def options_of(role: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options that a role's specification states, and its defaults."""
    folder = ROOT / "roles" / role
    spec = yaml.safe_load((folder / "meta/argument_specs.yml").read_text())
    files = (yaml.safe_load(path.read_text()) for path in (folder / "defaults").rglob("*.yml"))
    defaults = {name: value for file in files for name, value in file.items() if not name.startswith("__")}
    return spec["argument_specs"]["main"]["options"], defaults


@pytest.mark.parametrize("role", ROLES)
def test_a_variable_is_described_and_has_its_roles_prefix_and_one_default_unless_it_is_required(role: str) -> None:
    def check(options: dict[str, Any], path: str) -> None:
        for name, says in options.items():
            assert "type" in says or isinstance(says.get("default", ""), str), f"{path}{name}"
            assert says.get("description"), f"{path}{name}"
            check(says.get("options", {}), f"{path}{name}.")

    options, defaults = options_of(role)
    check(options, "")
    assert set(defaults) == {name for name, says in options.items() if not says.get("required")}
    # If the specification repeats the default, both are the same.
    assert {name: says["default"] for name, says in options.items() if "default" in says}.items() <= defaults.items()
    connection = {"cluster_kubeconfig", "cluster_context"} if role == "preflight" else set()
    assert {name for name in options if not name.startswith(f"{role}_")} == connection


def effective(template: Any = None, **variables: Any) -> dict[str, Any]:
    return specs.effective({"inventory_hostname": "prod", **variables}, template or (lambda value: value))


def test_values_override_defaults_and_keep_their_type_because_the_roles_read_the_same_ones() -> None:
    given = {
        "nativelink_cas_replicas": "5",
        "keda_allow_downgrade": "yes",
        "nativelink_collector_version": 1,
        "nativelink_worker_pools": [{"name": 7, "slots": "12", "persistent_workers": "no"}],
    }
    values = effective(**given)
    assert {name: values[name] for name in given} == given
    assert (values["cluster"], values["nativelink_namespace"]) == ("prod", "nativelink")
    assert "cluster_context" not in values


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


SCHEMA = json.loads((ROOT / "schemas/cluster.schema.json").read_text())


def complaints(inventory: Any) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(inventory)]


def inventory(**variables: Any) -> dict[str, Any]:
    return {"all": {"children": {"europe": {"hosts": {"prod": variables, "dev": None}}}, "vars": {"region": "eu"}}}


def test_the_schema_accepts_sound_inventories() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert complaints(inventory()) == []
    assert complaints(inventory(nativelink_cas_replicas="{{ shards }}", nativelink_worker_pools=[{"name": "a"}])) == []
    for file in (ROOT / "inventories").glob("*/*.yml"):
        assert complaints(yaml.safe_load(file.read_text())) == [], file
    variables = jsonschema.Draft202012Validator({**SCHEMA["$defs"]["variables"], "$defs": SCHEMA["$defs"]})
    for file in (ROOT / "inventories").glob("*/*_vars/*.yml"):
        assert list(variables.iter_errors(yaml.safe_load(file.read_text()))) == [], file


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

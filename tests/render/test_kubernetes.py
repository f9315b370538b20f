"""The rules for what users write in Kubernetes' own terms are neither laxer nor stricter than a real API server.

Each case of tests/preflight/reject that has a `server` is rendered in spite of the rules, and the API server refuses
the objects with these words. The rules and the API server both accept the variables in tests/preflight/accept.yml.
"""

import re
import subprocess
from functools import cache
from typing import Any

import pytest
import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render, validation
from ansible_collections.nativelink.gitops.plugins.plugin_utils.objects import object_findings

from testbed import build
from testbed.cluster import Cluster
from testkit.trees import Object, values_of
from tests.preflight.cases import ACCEPTED, CASES, Case

SERVED = [case for case in CASES if case.server]
NAMES: list[dict[str, Any]] = [
    {"node_selector": {f"{'a.' * 126}b/c": "d"}},
    {"resources": {"limits": {"memory": "16Gi", f"{'a' * 244}/b": 1}}},
]
LONGEST = [{"nativelink_worker_pools": [{"name": "linux", **keys}]} for keys in NAMES]


def with_connection(variables: dict[str, Any]) -> dict[str, Any]:
    return values_of(cluster_kubeconfig="/k", cluster_context="c", **variables)


@cache
def usual() -> dict[str, str]:
    return dict(render.objects(values_of()))


def changed(name: str, variables: dict[str, Any]) -> list[Object]:
    """Return the objects that differ from those of the defaults, renamed so that messages name the case."""
    texts = [text for path, text in render.objects(values_of(**variables)) if usual().get(path) != text]
    objects = [yaml.load(text, yaml.CSafeLoader) for text in texts]
    # KEDA, which makes an HPA of a ScaledObject, does not run here. The cases have an HPA in its place.
    wanted = [item for item in objects if item["kind"] != "ScaledObject"]
    return [{**item, "metadata": {**item["metadata"], "name": name}} for item in wanted]


def applied(api: Cluster, objects: list[Object]) -> str:
    """Return the API server's answers to the objects, none of which it keeps.

    All objects are in one call, because kubectl is slow.
    """
    command = api.command("apply", "--server-side", "--field-manager=test", "--force-conflicts", "--dry-run=server")
    text = yaml.safe_dump_all(objects)
    return subprocess.run([*command, "-f", "-"], input=text, capture_output=True, text=True, check=False).stderr


@pytest.fixture(scope="module")
def refusals(api: Cluster) -> dict[str, str]:
    """Return the API server's answer to each case."""
    said = applied(api, [item for case in SERVED for item in changed(case.name, case.variables)])
    found: dict[str, str] = {}
    for part in re.split(r"(?m)^(?=Error from server)", said):
        name = re.search(r' "([\w-]+)" is invalid:|\([\w-]+/([\w-]+);', part)
        found[(name[1] or name[2]) if name else ""] = part
    return found


def findings(values: dict[str, Any]) -> list[str]:
    return [str(finding) for finding in validation.static_findings({"test": values}) or object_findings(values)]


@pytest.mark.parametrize("case", SERVED, ids=lambda case: f"{case.place}-{case.name}")
def test_the_api_server_refuses_what_the_rules_refuse(case: Case, refusals: dict[str, str]) -> None:
    assert case.server in refusals[case.name]


def test_the_api_server_accepts_what_the_rules_accept(api: Cluster) -> None:
    objects = [changed(f"case-{index}", variables) for index, variables in enumerate([*ACCEPTED, *LONGEST])]
    assert all(objects), "a case changes nothing"
    assert applied(api, [item for each in objects for item in each]) == ""


@pytest.mark.parametrize("variables", [*ACCEPTED, *LONGEST], ids=str)
def test_the_rules_accept_the_variables(variables: dict[str, Any]) -> None:
    assert findings(with_connection(variables)) == []


TAGS = {"7.4": True, "_": True, "a" * 128: True, "a" * 129: False, "a b": False, "": False, "é": False}


@pytest.mark.parametrize(("tag", "valid"), TAGS.items())
def test_a_tag_is_valid_where_a_tool_for_images_can_read_it(tag: str, valid: bool) -> None:
    """The API server accepts any image, and the node refuses it later."""
    crane = build.program("crane")
    # Nothing listens on port 1, so that crane fails later if it can read the tag.
    done = subprocess.run([crane, "digest", f"127.0.0.1:1/image:{tag}"], capture_output=True, text=True, check=False)
    assert ("could not parse reference" not in done.stderr) == valid
    said = findings(with_connection({"nativelink_redis_version": tag}))
    assert (said == []) == valid

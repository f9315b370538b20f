"""What preflight refuses, Helm refuses as well, or a case says in `chart` why it does not.

The schema of the values has the place of a fault, and `nativelink.refuseFaults` has preflight's line.
"""

import json
import re
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
import yaml

from hack.chart import values
from testkit.trees import values_of
from tests.chart.conftest import CHART, Cluster, Done, Helm
from tests.preflight.cases import CASES, Case

Template = Callable[..., Done]
SCHEMA = jsonschema.Draft202012Validator(json.loads((CHART / "values.schema.json").read_text()))
DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())
# The keyword of the schema by preflight's words: that of the first row which matches.
KEYWORDS = {
    r": (unknown key|is unknown in)|not a resource|name of an environment": "additionalProperties",
    r"(_selector|annotations): '.*' is not a valid key": "additionalProperties",
    r": is not set": "required",
    r": is an empty list": "minItems",
    r": is empty; write one of": "minProperties",
    r"must be at least|, less than 1;|is 0, which is less": "minimum",
    r", more than \d|32 bits|must be at most|endPort: |from 0 to 100": "maximum",
    r"too long": "maxLength",
    r"not a whole number|not text;|not a list|not a mapping|must be text": "type",
    r"did you mean|write one of": "enum",
    r"valid duration; |\.port: |write a percentage": "anyOf",
    r"": "pattern",
}
# Faults that the schema names twice, and a name that is none.
STATED = {
    "nativelink_worker_pools[linux].max_replica:": {("workerPools[linux].maxReplica", "additionalProperties")},
    "nativelink_cas_storage_class: is empty": {("cas.storageClass", "minLength"), ("cas.storageClass", "pattern")},
    "nativelink_worker_egress[0].from": {
        ("worker.egress[0].from", "additionalProperties"),
        ("worker.egress[0].to", "required"),
    },
    "nativelink_worker_egress[0].ports[0].port: is 443.5": {
        ("worker.egress[0].ports[0].port", "anyOf"),
        ("worker.egress[0].ports[0].port", "oneOf"),
    },
    "nativelink_scheduler_resources.limits.memory: 8 is only": {("scheduler.resources.limits.memory", "minimum")},
}


def said(case: Case) -> str:
    return f"{case.place}: {case.text}"


def cluster(case: Case) -> Cluster:
    return values_of(case.name[:50], **{"nativelink_cas_storage_class": "gp3", **case.variables})


def merged(defaults: dict[str, Any], stated: dict[str, Any]) -> dict[str, Any]:
    """Return the values as Helm merges them."""
    found = {key: value for key, value in defaults.items() if stated.get(key, "") is not None}
    for key, value in stated.items():
        if value is not None:
            both = isinstance(value, dict) and isinstance(found.get(key), dict)
            found[key] = merged(found[key], value) if both else value
    return found


def refused(case: Case) -> list[jsonschema.ValidationError]:
    return list(SCHEMA.iter_errors(merged(DEFAULTS, values.helm_values(cluster(case)))))


def place(error: jsonschema.ValidationError, case: Case) -> str:
    """Return the place of an error as preflight says it: a missing or unknown key is a place."""
    path = list(error.absolute_path)
    if error.validator in ("required", "additionalProperties"):
        (key, *_) = re.findall(r"'(.+?)'", error.message)
        path += [] if f"'{key}' is not a valid" in case.text else [key]
    elif f"the value of {path[-1]} is" in case.text:
        path.pop()
    text, stated = "", values.helm_values(cluster(case))
    for key in path:
        stated = stated[key] if isinstance(key, int) or key in stated else {}
        named = stated.get("name", key) if isinstance(stated, dict) else key
        text += f"[{named}]" if isinstance(key, int) else f".{key}"
    return text[1:]


# Those whose variables are values of the chart.
VALUES = [case for case in CASES if case.variables and case.variables.keys() <= values.variables().keys()]
REFUSED = {case.name: refused(case) for case in VALUES}
BY_SCHEMA = [case for case in VALUES if REFUSED[case.name]]
BY_FAULTS = [case for case in VALUES if case not in BY_SCHEMA and not case.chart]
TAKEN = [case for case in CASES if case.chart]


def keyword(case: Case) -> str:
    return next(keyword for words, keyword in KEYWORDS.items() if re.search(words, said(case)))


@pytest.mark.parametrize("case", BY_SCHEMA, ids=said)
def test_the_schema_refuses_a_fault_at_its_place(case: Case) -> None:
    stated = next((errors for start, errors in STATED.items() if said(case).startswith(start)), None)
    found = {(place(error, case), error.validator) for error in REFUSED[case.name]}
    assert found == (stated or {(values.translated(case.place), keyword(case))})


@pytest.mark.parametrize("case", {keyword(case): case for case in BY_SCHEMA}.values(), ids=keyword)
def test_helm_reads_the_schema_so(case: Case, template: Template) -> None:
    done = template(cluster(case))
    assert done.returncode == 1
    for error in REFUSED[case.name]:
        assert f"- at '/{'/'.join(map(str, error.absolute_path))}': " in done.stderr


@pytest.mark.parametrize("case", BY_FAULTS, ids=said)
def test_a_fault_has_the_line_of_preflight(case: Case, template: Template) -> None:
    done = template(cluster(case))
    assert done.returncode == 1
    # Preflight's remedy may name a similar name.
    problem = case.helm or values.translated(case.text).rpartition("; ")[0]
    assert f"\n{values.translated(case.place)}: {problem}" in done.stderr


@pytest.mark.parametrize("case", TAKEN, ids=said)
def test_the_chart_takes_what_a_case_says(case: Case, template: Template) -> None:
    assert (case in VALUES, template(cluster(case)).stderr) == (True, "")


def test_all_faults_come_at_once(template: Template) -> None:
    faults = {"nativelink_scheduler_replicas": 2, "nativelink_workers_namespace": "nativelink"}
    done = template(values_of(**{"nativelink_cas_storage_class": "gp3", **faults}))
    assert "the values have faults:\n" in done.stderr
    assert "\nscheduler.replicas: is 2, " in done.stderr
    assert "\nworkersNamespace: is nativelink, which is also the namespace of the release; " in done.stderr


def test_an_unknown_value_is_refused(helm: Helm) -> None:
    chart = "charts/nativelink"
    done = helm("template", "x", chart, "--set", "cas.storageClass=gp3", "--set", "cas.replica=3")
    assert "at '/cas': additional properties 'replica' not allowed" in done.stderr

"""Python and Jinja become Go templates that do the same, and what cannot be translated is named with file and line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils import quantities, render
from ansible_collections.nativelink.gitops.plugins.plugin_utils.validation import kubernetes

from chart import go, jinja, python, values
from chart.files import STATIC
from tests.chart import samples
from tests.chart.conftest import Done

CALLS: list[tuple[Callable[..., Any], list[Any], Any]] = [
    (samples.early_return, [2], "small"),
    (samples.early_return, [3], "exactly 3"),
    (samples.early_return, [4], "large"),
    (samples.short_circuit, [{"items": []}], False),
    (samples.short_circuit, [{"items": ["a"]}], True),
    (samples.merged, [{"a": {"b": 1}, "own": 0}, {"a": {"c": 2}}], {"a": {"c": 2}, "own": 2}),
    (
        samples.comprehended,
        [[1, 2, 3]],
        {
            "doubled": [4, 6],
            "pairs": ["0=1", "1=2", "2=3"],
            "any": True,
            "all": False,
            "most": 3,
            "next": "n2",
            "joined": "1,2,3",
        },
    ),
    (samples.yielded, [[1, 2, 3]], ["1", "3", "x", "y"]),
    (samples.texts, ["ab:c:d"], ["b:c:d", "ab:c", ":", "d", True, False, True, "'ab:c:d'"]),
    (samples.records, [5], [12, "square!", "ak=v,more=w"]),
]


@pytest.fixture(scope="module")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a chart with nothing but the runtime."""
    folder = tmp_path_factory.mktemp("chart")
    (folder / "templates").mkdir()
    (folder / "Chart.yaml").write_text("apiVersion: v2\nname: sample\nversion: 0.1.0\n")
    (folder / "templates/_runtime.tpl").write_text((STATIC / "templates/_runtime.tpl").read_text())
    return folder


@pytest.fixture
def answers(chart: Path, helm: Callable[..., Done]) -> Callable[..., list[Any]]:
    """Return a function that evaluates Go pipelines, which write JSON, after some templates."""

    def run(pipelines: list[str], before: str = "") -> list[Any]:
        documents = "".join(f"\n---\nanswer: {{{{ {pipeline} }}}}" for pipeline in pipelines)
        (chart / "templates/out.yaml").write_text(before + documents)
        done = helm("template", "sample", chart)
        assert done.returncode == 0, done.stderr
        return [document["answer"] for document in yaml.safe_load_all(done.stdout) if document]

    return run


def test_functions_give_the_same_in_both_languages(answers: Callable[..., list[Any]]) -> None:
    program = python.Program({}, {})
    calls = ""
    for number, (function, arguments, _) in enumerate(CALLS):
        calls += f'{{{{- $call{number} := dict "args" {go.constant(arguments).code} -}}}}\n'
        calls += f'{{{{- template "{program.template(function)}" $call{number} -}}}}\n'
    found = answers([f"toJson $call{number}.result" for number in range(len(CALLS))], program.text() + calls)
    for (function, arguments, expected), answer in zip(CALLS, found, strict=True):
        result = function(*arguments)
        assert (list(result) if function is samples.yielded else result) == expected
        assert answer == expected, function.__name__


SIZES = ["1", "512Mi", "1.5Ti", ".5Gi", "3k", "1e9", "2E", "7.3M"]


def test_quantities_are_the_same_in_both_languages(answers: Callable[..., list[Any]]) -> None:
    bytes_of = [f'include "nativelink.bytes" {json.dumps(size)}' for size in SIZES]
    assert answers(bytes_of) == [quantities.bytes_of(size) for size in SIZES]
    calls = {
        'include "nativelink.part" (list "12.5%" 1000003)': 125000,
        'include "nativelink.seconds" "1h30m"': 5400,
        'include "nativelink.seconds" 90': 90,
        'include "nativelink.cpu" "500m"': 500,
        'include "nativelink.cpu" 0.5': 500,
        'include "nativelink.sizeText" 429496730': "409.6Mi",
    }
    assert answers(list(calls)) == list(calls.values())


RANGES = [
    ("169.254.169.254", "0.0.0.0/0", True),
    ("169.254.169.254", "169.254.169.254/32", True),
    ("169.254.169.254", "169.254.169.252/30", True),
    ("169.254.169.254", "168.0.0.0/7", True),
    ("169.254.169.254", "169.254.169.255/32", False),
    ("169.254.169.254", "169.254.128.0/19", False),
    ("169.254.169.254", "::/0", False),
    ("169.254.169.254", "everywhere", False),
    ("fd00:ec2::254", "::/0", True),
    ("fd00:ec2::254", "fd00:ec2::254/128", True),
    ("fd00:ec2::254", "FD00:0EC2:0:0:0:0:0:250/125", True),
    ("fd00:ec2::254", "fd00:ec0::/30", True),
    ("fd00:ec2::254", "fd00:ec3::/32", False),
    ("fd00:ec2::254", "fd00:ec2:0:1::/64", False),
    ("fd00:ec2::254", "0.0.0.0/0", False),
]


def test_ranges_contain_the_same_in_both_languages(answers: Callable[..., list[Any]]) -> None:
    calls = ""
    for number, (address, cidr, expected) in enumerate(RANGES):
        assert kubernetes.in_range(address, cidr) is expected, cidr
        calls += f'{{{{- $call{number} := dict "args" (list "{address}" "{cidr}") -}}}}\n'
        calls += f'{{{{- template "nativelink.inRange" $call{number} -}}}}\n'
    found = answers([f"toJson $call{number}.result" for number in range(len(RANGES))], calls)
    assert [*zip(RANGES, found, strict=True)] == [((a, c, expected), expected) for a, c, expected in RANGES]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (samples.endless, "samples.py:{}: this statement cannot be translated to a Go template"),
        (
            samples.returns_from_a_loop,
            "samples.py:{}: a return out of a loop or of a part of a branch cannot be translated to a Go template",
        ),
        (
            samples.unordered,
            "samples.py:{}: a loop over a constant whose keys are not in order cannot be translated to a Go template",
        ),
        (
            samples.untyped,
            "samples.py:{}: a loop over things, whose type is not known, cannot be translated to a Go template",
        ),
    ],
)
def test_python_that_cannot_be_translated_is_named(function: Callable[..., Any], message: str) -> None:
    program = python.Program({}, {})
    program.template(function)
    line = function.__code__.co_firstlineno + 2
    with pytest.raises(go.Untranslatable) as error:
        program.text()
    assert str(error.value) == message.format(line)


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("a\n{% set x = 1 %}\n", "the statement Assign"),
        ("a\nb: {% if x %}c{% endif %}\n", "a statement inside of a line"),
        ("a\n{{ x | upper }}\n", "the expression Filter"),
        ("a\n{% for k, v in x | dictsort %}\n{% endfor %}\n", "dictsort without case_sensitive, which is Go's order,"),
    ],
)
def test_jinja_that_cannot_be_translated_is_named(source: str, what: str) -> None:
    with pytest.raises(go.Untranslatable) as error:
        jinja.translate(source, "x.j2", render.environment())
    assert str(error.value) == f"x.j2:2: {what} cannot be translated to a Go template"


def test_jinja_becomes_lines_as_helm_users_write_them() -> None:
    source = "a: {{ x.y | quoted }}\n{% if when['b c'] %}\nd: {{ ports.e }}\n{% endif %}\n"
    assert jinja.translate(source, "x.j2", render.environment()) == (
        'a: {{ include "nativelink.quoted" $context.x.y }}\n'
        '{{- if index $context.when "b c" }}\n'
        "d: {{ $context.ports.e }}\n"
        "{{- end }}\n"
    )


def test_jinja_keeps_braces_of_the_text() -> None:
    text = "a: '{{ \"{{\" }} $labels.pod }}'\n"
    assert jinja.translate("a: '{% raw %}{{{% endraw %} $labels.pod }}'\n", "x.j2", render.environment()) == text


@pytest.mark.parametrize(
    ("variable", "path"),
    [
        ("nativelink_cas_replicas", "cas.replicas"),
        ("nativelink_scheduler_backend", "scheduler.backend"),
        ("nativelink_worker_pools", "workerPools"),
        ("nativelink_workers_namespace", "workersNamespace"),
        ("nativelink_redis_exporter_image", "redisExporter.image"),
        ("nativelink_edge", "edge.kind"),
        ("nativelink_edge_tls_secret", "edge.tlsSecret"),
        ("nativelink_prometheus", "prometheus.provider"),
        ("nativelink_metrics", "metrics.senders"),
        ("ingress_class_name", "ingress.className"),
    ],
)
def test_values_have_the_names_that_helms_users_expect(variable: str, path: str) -> None:
    assert ".".join(values.path_of(variable)) == path

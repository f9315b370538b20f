"""Templates of Jinja become templates of Go as a person writes them, or are refused with file and line."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render

from hack.chart import jinja, values


def translated(source: str, *, file: bool = False, **constants: Any) -> str:
    return jinja.translate(source, "x.j2", render.environment(), constants, values.operands(), file=file)


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("a\n{% set x = 1 %}\n", "the statement Assign"),
        ("a\nb: {% if x %}c{% endif %}\n", "a statement inside of a line"),
        ("a\n{{ x | upper }}\n", "the expression Filter"),
        ("a\n{{ x + 1 }}\n", "the expression Add"),
        ("a\n{{ 'b' if x else 'c' }}\n", "the expression CondExpr"),
        ("a\n{{ x | to_json }}\n", "the expression Filter"),
        ("a\n{% for k, v in x | dictsort %}\n{% endfor %}\n", "dictsort without case_sensitive, which is Go's order,"),
    ],
)
def test_what_cannot_be_translated_is_named(source: str, what: str) -> None:
    with pytest.raises(jinja.Untranslatable) as error:
        translated(source)
    assert str(error.value) == f"x.j2:2: {what} cannot be translated to a Go template"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a: {{ cas.served | quoted }}\n", "a: {{ quote $context.cas.served }}\n"),
        ("a: {{ nativelink_cas_replicas }}\n", "a: {{ int64 $.Values.cas.replicas }}\n"),
        ("a: {{ pool.headroom }}\n", "a: {{ int64 $pool.headroom }}\n"),
        ("a:\n  {{ x.y | to_nice_yaml | indent(2) }}\n", "a:\n  {{- toYaml $context.x.y | nindent 2 }}\n"),
        (
            "{% if features.redis %}\na\n{% elif b %}\nc\n{% endif %}\n",
            "{{- if $context.features.redis }}\na\n{{- else if $context.b }}\nc\n{{- end }}\n",
        ),
        ("{% for x in y %}\n{{ x.a }}\n{% endfor %}\n", "{{- range $x := $context.y }}\n{{ $x.a }}\n{{- end }}\n"),
    ],
)
def test_an_object_is_as_helms_users_write_it(source: str, expected: str) -> None:
    assert translated(source) == expected


def test_a_file_is_written_byte_for_byte() -> None:
    assert translated("{{ x | quoted }} {{ x | to_json }}", file=True) == (
        '{{ include "nativelink.quoted" $context.x }} {{ toRawJson $context.x }}'
    )


def test_constants_are_written_out() -> None:
    branch = "{% if name == 'a' and x %}\n{{ name }}\n{% else %}\n{{ ports[name] }}\n{% endif %}\n"
    found = translated(f"{{% for name in names %}}\n{branch}{{% endfor %}}\n", names=["a", "b"], ports={"a": 1, "b": 2})
    assert found == "{{- if $context.x }}\na\n{{- else }}\n1\n{{- end }}\n2\n"


def test_braces_of_the_text_are_kept() -> None:
    text = 'a: \'{{ "{{" }} $labels.pod {{ "}}" }}\'\n'
    assert translated("a: '{% raw %}{{ $labels.pod }}{% endraw %}'\n") == text


@pytest.mark.parametrize(
    ("variable", "path"),
    [
        ("nativelink_cas_replicas", "cas.replicas"),
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

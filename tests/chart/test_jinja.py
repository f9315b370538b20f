"""What cannot become a template of Go is refused with file and line. test_parity.py shows that the others are right."""

from __future__ import annotations

import pytest
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render

from hack.chart import jinja, values


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
        jinja.translate(source, "x.j2", render.environment(), {}, values.operands(), file=False)
    assert str(error.value) == f"x.j2:2: {what} cannot be translated to a Go template"

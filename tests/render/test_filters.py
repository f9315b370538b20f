"""YAML that the templates' filters print reads back as the same value."""

from typing import Any

import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils import filters, render
from hypothesis import given
from hypothesis import strategies as st

# A long text is folded.
LONG = st.lists(st.text("abc#:- \"'{[&*!|>%@`\n", min_size=1, max_size=30), min_size=20).map(" ".join)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | LONG
DATA = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)


@given(DATA)
def test_to_nice_yaml_reads_back_also_where_it_is_indented(data: Any) -> None:
    assert yaml.load(filters.to_nice_yaml(data), yaml.CSafeLoader) == data
    text = render.environment().from_string("top:\n  data:\n    {{ data | to_nice_yaml | indent(4) }}\n")
    assert yaml.load(text.render(data=data), yaml.CSafeLoader) == {"top": {"data": data}}


@given(st.text())
def test_quoted_reads_back(text: str) -> None:
    assert yaml.load(f"key: {filters.quoted(text)}", yaml.CSafeLoader) == {"key": text}

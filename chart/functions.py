"""What Helm computes: the context of the templates and the rules of preflight, translated from Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ansible_collections.nativelink.gitops.plugins.plugin_utils import change_guard, context, quantities, specs
from ansible_collections.nativelink.gitops.plugins.plugin_utils.specs import Option
from ansible_collections.nativelink.gitops.plugins.plugin_utils.validation import formats, kubernetes, rules, schemas

from . import values
from .go import BOOL, DICT, FLOAT, INT, LIST, NONE, PREFIX, STR, Go, Kind, common, constant, quoted
from .python import Builtin, Program

# Rules about what is not in the chart, and those whose findings the schema of the values has.
_SCHEMA_HAS = (
    rules.cas_storage_class,
    rules.images_without_tag,
    kubernetes.image_tags,
)
_ABSENT = (
    rules.gitops,
    rules.gitops_credentials,
    rules.existing_argocd,
    rules.storage_classes,
    rules.worker_certificates,
)
RULES = tuple(rule for rule in (*rules.RULES, *kubernetes.RULES) if rule not in (*_SCHEMA_HAS, *_ABSENT))


def program() -> str:
    """The Go templates of the context, of the findings, and of the texts in `_changes.tpl`, with all that they need."""
    translated = Program(_BUILTINS, _kinds())
    translated.template(context.template_context)
    for text in (change_guard.other_shards, change_guard.other_size, change_guard.other_class):
        translated.template(text)
    lines = [
        "{{- /* The findings of all rules: a list of lists of variable, problem and remedy. */ -}}",
        f'{{{{- define "{PREFIX}.findings" -}}}}',
        "{{- $findings := list -}}",
    ]
    for rule in RULES:
        lines += [
            '{{- $call := dict "args" .args -}}',
            f"{{{{- template {quoted(translated.template(rule))} $call -}}}}",
            "{{- $findings = concat $findings $call.result -}}",
        ]
    for path, check in _amounts():
        lines += _amount_findings(path, translated.template(check))
    lines += ['{{- $_ := set . "result" $findings -}}', "{{- end -}}", ""]
    return translated.text() + "\n" + "\n".join(lines) + "\n" + _names()


def _amounts() -> Iterator[tuple[str, Any]]:
    """The variables and keys of pools whose format a schema cannot say: an amount that is 0, or a day of no month."""
    for name, option in values.variables().items():
        for path in [name, *(f"{name}[].{key}" for key in option.element.options)]:
            for check in formats.checks(path):
                if check in (formats.size, formats.share, formats.duration, formats.day):
                    yield path, check


def _amount_findings(path: str, template: str) -> list[str]:
    """The lines that collect the findings of a format."""
    variable, _, key = path.partition("[].")
    item = f"$item.{key}" if key else "$item"
    shown = f'(printf "{variable}[%v].{key}" $item.name)' if key else quoted(variable)
    return [
        f"{{{{- range $item := {'' if key else 'list '}(index .args 0).{variable} -}}}}",
        f'  {{{{- $call := dict "args" (list {item}) -}}}}',
        f"  {{{{- template {quoted(template)} $call -}}}}",
        "  {{- range $found := $call.result -}}",
        f"    {{{{- $findings = append $findings (concat (list {shown}) $found) -}}}}",
        "  {{- end -}}",
        "{{- end -}}",
    ]


def _names() -> str:
    """The template that gives a message the names of the chart."""
    pairs = constant([list(pair) for pair in values.names()]).code
    return (
        f'{{{{- define "{PREFIX}.translated" -}}}}\n{{{{- $text := . -}}}}\n'
        f"{{{{- range $pair := {pairs[1:-1]} -}}}}\n"
        '  {{- $text = regexReplaceAll (printf "\\\\b%s\\\\b" (index $pair 0)) $text (index $pair 1) -}}\n'
        "{{- end -}}\n{{- $text -}}\n{{- end -}}\n"
    )


def _included(name: str, kind: Kind) -> Builtin:
    """A call of a template of `_runtime.tpl` that writes its answer as a text."""

    def call(*arguments: str) -> Go:
        data = arguments[0] if len(arguments) == 1 else f"(list {' '.join(arguments)})"
        return Go(f'(include "{PREFIX}.{name}" {data}{" | int64" if kind == INT else ""})', kind)

    return call


_BUILTINS: dict[Callable[..., Any], Builtin] = {
    quantities.bytes_of: _included("bytes", INT),
    quantities.cpu_of: _included("cpu", INT),
    quantities.midnight_of: _included("midnight", INT),
    quantities.seconds_of: _included("seconds", INT),
    quantities.part_of: _included("part", INT),
    quantities.size_text: _included("sizeText", STR),
    quantities.network_of: _included("network", STR),
    formats.shown: _included("shown", STR),
    # Go has no measure of similarity, so messages name all choices instead of the nearest one.
    formats.nearest: lambda *_: Go(NONE, STR),
    specs.known: lambda found: Go(found, DICT),
    specs.with_defaults: lambda known: Go(known, DICT),
    schemas.definition_findings: lambda *_: Go("list", LIST),
    kubernetes.quantity_of: ("amount", FLOAT),
    kubernetes.is_multiple: lambda number, unit: Go(
        f"(eq (mulf (divf {number} {unit} | floor) {unit}) {number})", BOOL
    ),
    kubernetes.ip_block: ("ipBlock", LIST),
    kubernetes.in_range: ("inRange", BOOL),
}


def _kinds() -> dict[str, Kind]:
    """The types of variables and of the keys of pools."""
    options = specs.options()
    return {name: _kind(option) for name, option in {**options[values.POOLS].options, **options}.items()}


def _kind(option: Option) -> Kind:
    if option.type == "list":
        return Kind("list", (_kind(option.element),))
    if option.type == "dict":
        return Kind("dict", (STR, common(*map(_kind, option.options.values()))))
    return Kind({"path": "str", "raw": ""}.get(option.type, option.type))

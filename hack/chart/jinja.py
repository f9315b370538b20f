"""Translates the Jinja templates of role nativelink to Go templates, by Jinja's own syntax tree.

A constant is written out, a variable of the inventory becomes its value, `.Values.cas.replicas`, and all else is what
`static/templates/_context.tpl` has computed, `$context.cas.store`. Whatever cannot be translated raises Untranslatable.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import Environment, nodes

_OPERATORS = {"eq": "eq", "ne": "ne", "gt": "gt", "lt": "lt", "gteq": "ge", "lteq": "le"}
# In an object, which the API server reads, and in a file of a ConfigMap, which has to be the same byte for byte.
_OBJECT = {"quoted": "quote {}", "to_nice_yaml": "toYaml {}"}
_FILE = {"quoted": 'include "nativelink.quoted" {}', "to_json": "toRawJson {}"}
_UNKNOWN = object()


class Untranslatable(Exception):
    """What a Go template cannot say, or this module does not; the message begins with the template's file and line."""


def translate(
    source: str,
    name: str,
    environment: Environment,
    constants: Mapping[str, Any],
    values: Mapping[str, str],
    *,
    file: bool,
) -> str:
    """The body of a Go template, which has the context in `$context`, and loops' variables as variables.

    `constants` are what is the same in each cluster, by its name in templates; `values` are the operands of variables.
    `file` says that the text is a file in a ConfigMap.
    """
    variables = {"pool", "collector", "scrape"} - constants.keys()
    template = _Template(name, environment, constants, values, _FILE if file else _OBJECT, variables)
    return template.body(environment.parse(source).body)


@dataclass(frozen=True)
class _Template:
    name: str
    environment: Environment
    constants: Mapping[str, Any]
    values: Mapping[str, str]
    filters: Mapping[str, str]
    variables: set[str]

    def body(self, statements: Iterable[nodes.Node]) -> str:
        text = ""
        for node in statements:
            match node:
                case nodes.Output():
                    for part in node.nodes:
                        text += _escaped(part.data) if isinstance(part, nodes.TemplateData) else self._output(part)
                case nodes.If():
                    text += self._if(node)
                case nodes.With(targets=[nodes.Name(name=name)], values=[nodes.Const(value=value)]):
                    text += self._with([name], value).body(node.body)
                case nodes.With(targets=[nodes.Name(name=name)], values=[value]):
                    text += f"{{{{- ${name} := {_bare(self.value(value))} }}}}\n" + self._with([name]).body(node.body)
                case nodes.Include(template=nodes.Const(value=path)):
                    source = self.environment.loader.get_source(self.environment, path)[0]
                    text += self.body(self.environment.parse(source).body)
                case nodes.For(else_=[], recursive=False, test=None):
                    text += self._for(node)
                case _:
                    raise self._error(node, f"the statement {type(node).__name__}")
        return text

    def _output(self, node: nodes.Expr) -> str:
        if (found := self._constant(node)) is not _UNKNOWN:
            return _escaped(str(found))
        match node:
            case nodes.Filter(name="indent", node=nodes.Filter(name="to_nice_yaml", node=inner), args=[width]) if inner:
                if "to_nice_yaml" not in self.filters:
                    raise self._error(node, "to_nice_yaml in a file of a ConfigMap")
                return f"{{{{- toYaml {self.value(inner)} | nindent {self.value(width)} }}}}"
        return f"{{{{ {_bare(self.value(node))} }}}}"

    def _if(self, node: nodes.If) -> str:
        branches = [(each.test, each.body) for each in (node, *node.elif_)]
        text, word = "", "if"
        for test, body in [*branches, (nodes.Const(True), node.else_)]:
            known = self._truth(test)
            if known and not text:
                return self.body(body)
            if known:
                text += "{{- else }}\n" + self._lines(node, body) if body else ""
                break
            if known is None:
                text += f"{{{{- {word} {_bare(self.value(test))} }}}}\n" + self._lines(node, body)
                word = "else if"
        return text + "{{- end }}\n"

    def _truth(self, test: nodes.Expr) -> bool | None:
        """Whether a condition holds, as far as it is known here."""
        if (found := self._constant(test)) is not _UNKNOWN:
            return bool(found)
        if isinstance(test, nodes.And) and False in (self._truth(test.left), self._truth(test.right)):
            return False
        return None

    def _for(self, node: nodes.For) -> str:
        names = [item.name for item in getattr(node.target, "items", [node.target])]
        if (found := self._constant(node.iter)) is not _UNKNOWN:
            return "".join(self._with(names, item).body(node.body) for item in found)
        iterated = node.iter
        if isinstance(iterated, nodes.Filter) and iterated.name == "dictsort":
            if iterated.args != [nodes.Const(True)]:
                raise self._error(node, "dictsort without case_sensitive, which is Go's order,")
            iterated = iterated.node
        elif len(names) > 1:
            raise self._error(node, "this loop")
        inner = self._with(names)
        loop = f"{', '.join(f'${name}' for name in names)} := {_bare(self.value(iterated))}"
        return f"{{{{- range {loop} }}}}\n{inner._lines(node, node.body)}{{{{- end }}}}\n"

    def _with(self, names: list[str], item: Any = _UNKNOWN) -> _Template:
        """The template inside of a loop: over something that is known here already, or else with Go's variables."""
        known = {} if item is _UNKNOWN else dict(zip(names, item if len(names) > 1 else [item], strict=True))
        return replace(self, variables={*self.variables, *names}, constants={**self.constants, **known})

    def _lines(self, node: nodes.Node, statements: list[nodes.Node]) -> str:
        """What a statement holds, which are whole lines."""
        text = self.body(statements)
        if not text.endswith("\n"):
            raise self._error(node, "a statement inside of a line")
        return text

    def _constant(self, node: nodes.Node | None) -> Any:
        """The value of an expression of constants only."""
        names = {found.name for found in node.find_all(nodes.Name)} if node else set()
        names |= {node.name} if isinstance(node, nodes.Name) else set()
        if node is None or not names <= self.constants.keys():
            return _UNKNOWN
        output = nodes.Assign(nodes.Name("found", "store"), node).set_lineno(1)
        template = nodes.Template([output], lineno=1).set_environment(self.environment)
        code = self.environment.compile(template, self.name)
        return self.environment.template_class.from_code(self.environment, code, {}).make_module(self.constants).found

    def value(self, node: nodes.Node | None) -> str:
        """An expression as an operand."""
        if (found := self._constant(node)) is not _UNKNOWN:
            return json.dumps(found, ensure_ascii=False)
        match node:
            case nodes.Name(name=name):
                return f"${name}" if name in self.variables else self.values.get(name, f"$context.{name}")
            case nodes.Getattr(node=nodes.Name(name="pool"), attr=name):
                return self.values.get(f"pool.{name}", f"$pool.{name}")
            case nodes.Getattr(node=owner, attr=name):
                return f"{self.value(owner)}.{name}"
            case nodes.Getitem(node=owner, arg=key):
                return f"(index {self.value(owner)} {self.value(key)})"
            case nodes.Filter(name="indent", node=inner, args=[width]):
                return f"({_bare(self.value(inner))} | indent {self.value(width)} | trim)"
            case nodes.Filter(name="replace", node=inner, args=[old, new]):
                return f"({_bare(self.value(inner))} | replace {self.value(old)} {self.value(new)})"
            case nodes.Filter(name="folded", node=inner):
                return f"(wrap 100 {self.value(inner)})"
            case nodes.Filter(name="as_text", node=inner):
                return f'(include "nativelink.text" {self.value(inner)})'
            case nodes.Call(node=nodes.Name(name="range"), args=[count]):
                return f"(until (int {self.value(count)}))"
            case nodes.Filter(name=name, node=inner, args=[]) if name in self.filters:
                return f"({self.filters[name].format(self.value(inner))})"
            case nodes.Compare(expr=left, ops=[nodes.Operand(op="in", expr=right)]):
                return f"(has {self.value(left)} {self.value(right)})"
            case nodes.Compare(expr=left, ops=[nodes.Operand(op=operator, expr=right)]) if operator in _OPERATORS:
                return f"({_OPERATORS[operator]} {self.value(left)} {self.value(right)})"
            case nodes.Test(node=nodes.Getattr(node=owner, attr=name), name="defined"):
                return f"(hasKey {self.value(owner)} {json.dumps(name)})"
            case nodes.And(left=left, right=right):
                return self.value(right) if self._truth(left) else f"(and {self.value(left)} {self.value(right)})"
            case nodes.Or(left=left, right=right):
                return f"(or {self.value(left)} {self.value(right)})"
            case nodes.Not(node=inner):
                return f"(not {self.value(inner)})"
        raise self._error(node, f"the expression {type(node).__name__}")

    def _error(self, node: nodes.Node | None, what: str) -> Untranslatable:
        return Untranslatable(f"{self.name}:{node.lineno if node else 0}: {what} cannot be translated to a Go template")


def _bare(code: str) -> str:
    """An operand as a pipeline, without the parentheses around it."""
    return code[1:-1] if code.startswith("(") and code.endswith(")") else code


def _escaped(text: str) -> str:
    return re.sub(r"\{\{|\}\}", lambda found: f"{{{{ {json.dumps(found[0])} }}}}", text) if "{{" in text else text

"""Translates the Jinja templates of role nativelink to Go templates, by Jinja's own syntax tree.

Whatever cannot be translated raises Untranslatable, which names file and line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from jinja2 import Environment, nodes

from .go import PREFIX, Untranslatable, bare, quoted

_FILTERS: dict[str, Callable[..., str]] = {
    "quoted": lambda value: f'include "{PREFIX}.quoted" {value}',
    "to_nice_yaml": lambda value: f'include "{PREFIX}.yaml" {value}',
    "to_nice_json": lambda value: f'include "{PREFIX}.prettyJson" {value}',
    "to_json": lambda value: f'include "{PREFIX}.json" {value}',
    "indent": lambda value, width: f"{value} | indent {width} | trim",
    "replace": lambda value, old, new: f"{value} | replace {old} {new}",
    "default": lambda value, other: f"{value} | default {other}",
    "string": lambda value: f"toString {value}",
    "max": lambda value: f"max {value}",
}
_OPERATORS = {"eq": "eq", "ne": "ne", "gt": "gt", "lt": "lt", "gteq": "ge", "lteq": "le"}


def translate(source: str, name: str, environment: Environment, variables: Iterable[str] = ()) -> str:
    """The body of a Go template, which has the context in `$context` and each of `variables` as a variable."""
    return _Template(name, variables).body(environment.parse(source).body)


def expression(source: str, name: str, environment: Environment) -> str:
    """The operand of Go for a text that is one expression of Jinja in braces."""
    (output,) = environment.parse(source).body
    if not isinstance(output, nodes.Output) or len(output.nodes) != 1:
        raise Untranslatable(f"{name}: more than one expression cannot be translated to a Go template")
    return _Template(name, ()).value(output.nodes[0])


class _Template:
    def __init__(self, name: str, variables: Iterable[str]) -> None:
        self.name = name
        self.variables = list(variables)

    def body(self, statements: Iterable[nodes.Node]) -> str:
        text = ""
        for node in statements:
            match node:
                case nodes.Output():
                    for part in node.nodes:
                        data = isinstance(part, nodes.TemplateData)
                        text += _escaped(part.data) if data else f"{{{{ {self.pipeline(part)} }}}}"
                case nodes.If():
                    text += self._if(node)
                case nodes.For(else_=[], recursive=False, test=None):
                    text += self._for(node)
                case _:
                    raise self._error(node, f"the statement {type(node).__name__}")
        return text

    def _if(self, node: nodes.If) -> str:
        text = f"{{{{- if {self.pipeline(node.test)} }}}}\n" + self._lines(node, node.body)
        for branch in node.elif_:
            text += f"{{{{- else if {self.pipeline(branch.test)} }}}}\n" + self._lines(branch, branch.body)
        if node.else_:
            text += "{{- else }}\n" + self._lines(node, node.else_)
        return text + "{{- end }}\n"

    def _for(self, node: nodes.For) -> str:
        before = list(self.variables)
        iterated, target = node.iter, node.target
        if isinstance(iterated, nodes.Filter) and iterated.name == "dictsort" and isinstance(target, nodes.Tuple):
            if iterated.args != [nodes.Const(True)]:
                raise self._error(node, "dictsort without case_sensitive, which is Go's order,")
            iterated = iterated.node
            names = [self._stored(item) for item in target.items]
        else:
            names = [self._stored(target)]
        loop = f"{', '.join(f'${name}' for name in names)} := {self.pipeline(iterated)}"
        self.variables += names
        text = f"{{{{- range {loop} }}}}\n{self._lines(node, node.body)}{{{{- end }}}}\n"
        self.variables = before
        return text

    def _stored(self, node: nodes.Node) -> str:
        if not isinstance(node, nodes.Name):
            raise self._error(node, "this loop")
        return node.name

    def _lines(self, node: nodes.Node, statements: list[nodes.Node]) -> str:
        """What a statement holds, which are whole lines."""
        text = self.body(statements)
        if not text.endswith("\n"):
            raise self._error(node, "a statement inside of a line")
        return text

    def pipeline(self, node: nodes.Node | None) -> str:
        """An expression where Go expects a pipeline."""
        return bare(self.value(node))

    def value(self, node: nodes.Node | None) -> str:
        """An expression as an operand."""
        match node:
            case nodes.Const(value=str(value)):
                return quoted(value)
            case nodes.Const(value=bool(value)):
                return "true" if value else "false"
            case nodes.Const(value=int(value)):
                return str(value)
            case nodes.Name(name=name):
                return f"${name}" if name in self.variables else f"$context.{name}"
            case nodes.Getattr(node=owner, attr=name):
                return f"{self.value(owner)}.{name}"
            case nodes.Getitem(node=owner, arg=key):
                return self._item(owner, key)
            case nodes.Filter(node=value, name=name, args=arguments, kwargs=[]) if name in _FILTERS and value:
                if name == "max" and isinstance(value, nodes.List):
                    return f"(max {' '.join(map(self.value, value.items))})"
                inner = self.pipeline(value) if name in ("indent", "replace") else self.value(value)
                return f"({_FILTERS[name](inner, *map(self.value, arguments))})"
            case nodes.Compare(expr=left, ops=[nodes.Operand(op=operator, expr=right)]) if operator in _OPERATORS:
                return f"({_OPERATORS[operator]} {self.value(left)} {self.value(right)})"
            case nodes.Test(node=nodes.Getattr(node=owner, attr=name), name="defined"):
                return f"(hasKey {self.value(owner)} {quoted(name)})"
            case nodes.And(left=left, right=right):
                return f"(and {self.value(left)} {self.value(right)})"
            case nodes.Or(left=left, right=right):
                return f"(or {self.value(left)} {self.value(right)})"
            case nodes.Not(node=inner):
                return f"(not {self.value(inner)})"
            case nodes.Mul(left=left, right=right):
                return f"(mul {self.value(left)} {self.value(right)})"
            case nodes.CondExpr(test=test, expr1=first, expr2=second) if second:
                return f"(ternary {self.value(first)} {self.value(second)} (not (not {self.value(test)})))"
            case nodes.Concat(nodes=parts):
                form = quoted("%v" * len(parts))
                return f"(printf {form} {' '.join(map(self.value, parts))})"
            case nodes.List(items=items):
                return f"(list {' '.join(map(self.value, items))})"
            case nodes.Dict(items=pairs):
                return f"(dict {' '.join(f'{self.value(pair.key)} {self.value(pair.value)}' for pair in pairs)})"
        raise self._error(node, f"the expression {type(node).__name__}")

    def _item(self, owner: nodes.Node, key: nodes.Node) -> str:
        if isinstance(key, nodes.Const) and re.fullmatch(r"[A-Za-z_]\w*", str(key.value), re.ASCII):
            return f"{self.value(owner)}.{key.value}"
        return f"(index {self.value(owner)} {self.value(key)})"

    def _error(self, node: nodes.Node | None, what: str) -> Untranslatable:
        line = node.lineno if node else 0
        return Untranslatable(f"{self.name}:{line}: {what} cannot be translated to a Go template")


def _escaped(text: str) -> str:
    return re.sub(r"\{\{|\}\}", lambda found: f"{{{{ {quoted(found[0])} }}}}", text) if "{{" in text else text

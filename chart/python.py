"""Translates functions of a small part of Python to Go templates, so that Helm computes what rendering computes.

A function becomes a named template. Its data is a dict with `args`, the list of its arguments; the template sets
`result`. `include` would turn every result into a text, and a number or a list would be lost. A generator's result is
the list of all that it yields.

Whatever cannot be translated raises Untranslatable, which names file and line. Loops over a mapping are in the order of
its keys, because Go knows no other, so a translated function must not depend on the order in which a mapping was made.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType, GenericAlias, ModuleType
from typing import Any

from .go import (
    BOOL,
    DICT,
    FLOAT,
    FUNCTION,
    INT,
    LIST,
    LISTS,
    NONE,
    PREFIX,
    RECORDS,
    STR,
    UNKNOWN,
    Go,
    Kind,
    Untranslatable,
    bare,
    common,
    constant,
    quoted,
)

# Go's operators are functions.
_ARITHMETIC = {ast.Sub: "sub", ast.Mult: "mul", ast.FloorDiv: "div", ast.Mod: "mod"}
_COMPARISONS = {ast.Eq: "eq", ast.NotEq: "ne", ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge"}
_KINDS = {
    "str": "string",
    "bool": "bool",
    "list": "slice",
    "tuple": "slice",
    "dict": "map",
    "int": "int64",
    "float": "float64",
}
_ANNOTATIONS = {name: name for name in ("str", "int", "float", "bool", "list", "tuple", "dict", "set")}
_ANNOTATIONS |= {"Sequence": "list", "Iterator": "list", "Mapping": "dict", "CheckedValues": "dict"}
_ANNOTATIONS |= {"Fraction": "float"}
# Methods of texts that are functions in Go, by name and number of arguments: the text itself is {0}.
_METHODS = {
    ("startswith", 1): ("(hasPrefix {1} {0})", BOOL),
    ("endswith", 1): ("(hasSuffix {1} {0})", BOOL),
    ("removeprefix", 1): ("(trimPrefix {1} {0})", STR),
    ("removesuffix", 1): ("(trimSuffix {1} {0})", STR),
    ("lower", 0): ("(lower {0})", STR),
    ("isdigit", 0): ('(regexMatch "^[0-9]+$" {0})', BOOL),
    ("replace", 2): ("(replace {1} {2} {0})", STR),
    ("join", 1): ("(join {0} {1})", STR),
}
# What takes a function's place: what makes the Go of a call from that of its arguments, or a template written by hand,
# by its name and the type of its result.
Builtin = Callable[..., Go] | tuple[str, Kind]


class Program:
    """All functions that some functions need, each as a named template.

    `builtins_` maps Python's functions to the Go of their calls, and `kinds` the keys of variables to their types.
    """

    def __init__(self, builtins_: Mapping[Callable[..., Any], Builtin], kinds: Mapping[str, Kind]) -> None:
        """Start with no function."""
        self.builtins = builtins_
        self.kinds = kinds
        self._texts: dict[str, str] = {}
        self._wanted: list[tuple[str, FunctionType, type | None]] = []

    def template(self, function: Callable[..., Any], owner: type | None = None) -> str:
        """The name of a function's template, which becomes a part of the program."""
        module = function.__module__.rpartition(".")[2]
        name = f"{PREFIX}.{module}.{function.__qualname__.removesuffix('.__init__')}"
        if name not in self._texts:
            self._texts[name] = ""
            self._wanted.append((name, function, owner))  # type: ignore[arg-type]
        return name

    def text(self) -> str:
        """The templates, by name."""
        while self._wanted:
            name, function, owner = self._wanted.pop()
            self._texts[name] = _Function(self, function, owner).text(name)
        return "\n".join(self._texts[name] for name in sorted(self._texts))


class _Function:
    """Translates one function."""

    def __init__(self, program: Program, function: Callable[..., Any], owner: type | None) -> None:
        self.program = program
        self.function = function
        self.owner = owner
        self.module: Any = inspect.getmodule(function)
        lines, self.first = inspect.getsourcelines(function)
        self.tree: Any = ast.parse(textwrap.dedent("".join(lines))).body[0]
        self.kinds: dict[str, Kind] = {}
        self.macros: dict[str, ast.FunctionDef] = {}
        self.lines: list[str] = []
        self.depth = 0
        self.temporaries = 0
        self.yields = any(isinstance(node, ast.Yield | ast.YieldFrom) for node in self._own_nodes())

    def text(self, name: str) -> str:
        """The whole template."""
        self._emit("$frame := .")
        parameters = dict(_parameters(self.tree))
        for index, (parameter, annotation) in enumerate(parameters.items()):
            self.kinds[parameter] = self._annotated(annotation)
            self._emit(f"${parameter} := index .args {index}")
        if self.owner and self.function.__name__ == "__init__":
            self._emit("$self = dict")
        if self.owner:
            self.kinds["self"] = Kind(self.owner.__name__)
        for local in sorted(self._assigned() - parameters.keys()):
            self._emit(f'${local} := ""')
        if self.yields:
            self._emit("$yielded := list")
        self._block(self.tree.body)
        if self.yields:
            self._emit('$_ := set $frame "result" $yielded')
        elif self.function.__name__ == "__init__":
            self._emit('$_ := set $frame "result" $self')
        return f"{{{{- define {quoted(name)} -}}}}\n" + "\n".join(self.lines) + "\n{{- end -}}\n"

    # Statements -----------------------------------------------------------------------------------------------------

    def _block(self, statements: list[ast.stmt]) -> None:
        for index, statement in enumerate(statements):
            rest = statements[index + 1 :]
            if rest and isinstance(statement, ast.If) and _ends(statement.body):
                # Go has no return, so what follows belongs to the other branch.
                self._if(statement.test, statement.body, [*statement.orelse, *rest])
                return
            if (rest or isinstance(statement, ast.For)) and _leaves(statement):
                raise self._error(statement, "a return out of a loop or of a part of a branch")
            self._statement(statement)

    def _statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Expr(value=ast.Constant()) | ast.Pass():
                pass
            case ast.Expr(value=ast.Yield(value=value)) if value:
                self._emit(f"$yielded = append $yielded {self._value(value).code}")
            case ast.Expr(value=ast.YieldFrom(value=value)):
                found = self._value(value)
                self._emit(f"$yielded = concat $yielded {self._listed(found, value).code}")
            case ast.Expr(value=ast.Call(func=ast.Attribute(value=target, attr=method), args=arguments)):
                self._method_statement(node, target, method, arguments)
            case ast.Assign(targets=[target], value=value):
                self._assign(target, value)
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=value) if value:
                self._assign(node.target, value)
                self.kinds[name] = self._kind(annotation)
            case ast.AugAssign(target=ast.Name(id=name), op=operator, value=value):
                self._augment(node, name, operator, value)
            case ast.If(test=test, body=body, orelse=orelse):
                self._if(test, body, orelse)
            case ast.For(target=target, iter=iterated, body=body, orelse=[]):
                with self._range(target, iterated):
                    self._block(body)
            case ast.Return(value=value):
                if value is not None:
                    self._emit(f'$_ := set $frame "result" {self._value(value).code}')
            case ast.Continue():
                self._emit("continue")
            case ast.Try(body=body):
                # The schema of the values refuses what would raise.
                self._block(body)
            case ast.FunctionDef(name=name):
                self.macros[name] = node
            case _:
                raise self._error(node, "this statement")

    def _method_statement(self, node: ast.stmt, target: ast.expr, method: str, arguments: list[ast.expr]) -> None:
        if method == "whole":  # ends a rule whose variable is invalid, which the schema has refused
            return
        if method == "append" and isinstance(target, ast.Name):
            self._emit(f"${target.id} = append ${target.id} {self._value(arguments[0]).code}")
        elif method == "setdefault":
            key, value = (self._value(argument).code for argument in arguments)
            found = self._value(target).code
            self._emit(f"if not (hasKey {found} {key})")
            self._emit(f"$_ := set {found} {key} {value}", deeper=True)
            self._emit("end")
        else:
            raise self._error(node, f"a call of {method}")

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        match target:
            case ast.Name() | ast.Attribute():
                self._store(target, self._value(value))
            case ast.Tuple(elts=targets):
                if isinstance(value, ast.Tuple):
                    parts = [self._held(self._value(each)) for each in value.elts]
                else:
                    whole = self._held(self._value(value))
                    kinds = _unpacked(whole.kind, len(targets))
                    parts = [Go(f"(index {whole.code} {index})", kinds[index]) for index in range(len(targets))]
                for each, part in zip(targets, parts, strict=True):
                    self._store(each, part)
            case ast.Subscript(value=mapping, slice=key):
                found, where, what = self._value(mapping), self._value(key), self._value(value)
                self._emit(f"$_ := set {found.code} {where.code} {what.code}")
            case _:
                raise self._error(target, "this assignment")

    def _store(self, target: ast.expr, value: Go) -> None:
        match target:
            case ast.Name(id=name):
                self.kinds[name] = value.kind
                self._emit(f"${name} = {NONE if value.code == 'nil' else value.code}")
            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                self._emit(f"$_ := set $self {quoted(name)} {value.code}")
            case _:
                raise self._error(target, "this assignment")

    def _augment(self, node: ast.stmt, name: str, operator: ast.operator, value: ast.expr) -> None:
        found, kind = self._value(value), self.kinds.get(name, UNKNOWN).name
        match operator:
            case ast.BitOr() if kind == "dict":
                self._emit(f"${name} = {self._updated([Go(f'${name}'), found]).code}")
            case ast.BitOr() if kind == "set":
                self._emit(f"${name} = concat ${name} {found.code} | uniq")
            case ast.Add() if kind in LISTS:
                self._emit(f"${name} = concat ${name} {self._listed(found, value).code}")
            case ast.Add() if kind == "int":
                self._emit(f"${name} = add ${name} {found.code}")
            case _:
                raise self._error(node, "this assignment")

    def _if(self, test: ast.expr, body: list[ast.stmt], orelse: list[ast.stmt]) -> None:
        self._emit(f"if {bare(self._value(test).code)}")
        with self._deeper(), self._narrowed(test):
            self._block(body)
        if orelse:
            self._emit("else")
            with self._deeper():
                self._block(orelse)
        self._emit("end")

    @contextmanager
    def _range(self, target: ast.expr, iterated: ast.expr) -> Iterator[None]:
        """A loop; the caller emits its body."""
        pair: tuple[Kind, Kind] | None = None
        match iterated:
            case (
                ast.Call(func=ast.Attribute(value=mapping, attr="items"), args=[])
                | ast.Call(
                    func=ast.Name(id="sorted"),
                    args=[ast.Call(func=ast.Attribute(value=mapping, attr="items"), args=[])],
                )
            ):
                found = self._value(mapping)
                pair = STR, found.kind.value
                self._check_order(iterated, mapping)
            case ast.Call(func=ast.Name(id="enumerate"), args=[each]):
                found = self._listed(self._value(each), each)
                pair = INT, found.kind.element
            case ast.Call(func=ast.Attribute(value=mapping, attr="values"), args=[]):
                found = self._value(mapping)
                found = Go(found.code, Kind("list", (found.kind.value,)))
            case _:
                found = self._listed(self._value(iterated), iterated)
        operand = bare(found.code)
        unpacked: list[str] = []
        match target:
            case ast.Name(id=name) if not pair:
                self.kinds[name] = found.kind.element
                self._emit(f"range ${name} := {operand}")
            case ast.Tuple(elts=[ast.Name(id=key), ast.Name(id=item)]) if pair:
                self.kinds |= {key: pair[0], item: pair[1]}
                self._emit(f"range ${key}, ${item} := {operand}")
            case ast.Tuple(elts=names) if not pair:
                each_item = self._temporary()
                self._emit(f"range {each_item} := {operand}")
                for index, (name, kind) in enumerate(
                    zip(names, _unpacked(found.kind.element, len(names)), strict=True)
                ):
                    if not isinstance(name, ast.Name):
                        raise self._error(target, "this loop")
                    self.kinds[name.id] = kind
                    unpacked.append(f"${name.id} := index {each_item} {index}")
            case _:
                raise self._error(target, "this loop")
        with self._deeper():
            for line in unpacked:
                self._emit(line)
            yield
        self._emit("end")

    def _check_order(self, node: ast.expr, mapping: ast.expr) -> None:
        """Go loops over a map in the order of its keys, so a constant has to be in that order, too."""
        try:
            found = None if isinstance(mapping, ast.Name) and mapping.id in self.kinds else self._object(mapping)
        except Untranslatable:
            return
        if isinstance(found, Mapping) and list(found) != sorted(found):
            raise self._error(node, "a loop over a constant whose keys are not in order")

    # Expressions ----------------------------------------------------------------------------------------------------

    def _value(self, node: ast.expr) -> Go:
        match node:
            case ast.Constant(value=value):
                return constant(value)
            case ast.Name(id=name):
                return self._name(node, name)
            case ast.JoinedStr():
                return self._joined(node)
            case ast.Attribute():
                return self._attribute(node)
            case ast.Subscript():
                return self._subscript(node)
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                return self._list(elements)
            case ast.Set(elts=elements):
                return Go(f"({bare(self._list(elements).code)} | uniq)", Kind("set"))
            case ast.Dict():
                return self._dict(node)
            case (
                ast.ListComp(elt=element, generators=generators) | ast.GeneratorExp(elt=element, generators=generators)
            ):
                return self._comprehension(generators, element)
            case ast.SetComp(elt=element, generators=generators):
                return Go(f"({self._comprehension(generators, element).code} | uniq)", Kind("set"))
            case ast.DictComp(key=key, value=value, generators=generators):
                return self._comprehension(generators, value, key)
            case ast.BoolOp(op=operator, values=values):
                return self._short_circuit("and" if isinstance(operator, ast.And) else "or", values)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return Go(f"(not {self._value(operand).code})", BOOL)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(value))):
                return Go(str(-value), INT)
            case ast.BinOp():
                return self._operation(node)
            case ast.Compare():
                return self._comparison(node)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return self._choice(test, body, orelse)
            case ast.NamedExpr(target=ast.Name(id=name), value=value):
                self._assign(node.target, value)
                return Go(f"${name}", self.kinds.get(name, UNKNOWN))
            case ast.Call():
                return self._call(node)
        raise self._error(node, "this expression")

    def _name(self, node: ast.expr, name: str) -> Go:
        if name in self.kinds:
            return Go(f"${name}", self.kinds[name])
        found = self._object(node)
        if isinstance(found, FunctionType):
            return Go(quoted(self.program.template(found)), FUNCTION)
        try:
            return constant(found)
        except TypeError as error:
            raise self._error(node, str(error)) from None

    def _object(self, node: ast.expr) -> Any:
        """The object of Python that a name or a dotted name means."""
        match node:
            case ast.Name(id=name):
                if hasattr(self.module, name):
                    return getattr(self.module, name)
                if hasattr(builtins, name):
                    return getattr(builtins, name)
            case ast.Attribute(value=value, attr=attribute):
                owner = self._object(value)
                if isinstance(owner, ModuleType):
                    return getattr(owner, attribute)
        raise self._error(node, f"the name {ast.unparse(node)}")

    def _joined(self, node: ast.JoinedStr) -> Go:
        text, arguments = "", []
        for part in node.values:
            match part:
                case ast.Constant(value=str(value)):
                    text += value.replace("%", "%%")
                case ast.FormattedValue(value=value, conversion=conversion, format_spec=spec):
                    form = ast.unparse(spec)[2:-1] if spec else ""
                    found = self._value(value)
                    if found.code.startswith('"') and not form and conversion == -1:
                        text += json.loads(found.code).replace("%", "%%")
                        continue
                    if conversion == ord("r"):
                        found = Go(f'(include "{PREFIX}.shown" {found.code})')
                    text += {"": "%v", "g": "%.6g"}[form]
                    arguments.append(found.code)
        if not arguments:
            return constant(text.replace("%%", "%"))
        return Go(f"(printf {quoted(text)} {' '.join(arguments)})", STR)

    def _attribute(self, node: ast.Attribute) -> Go:
        if isinstance(node.value, ast.Name) and node.value.id not in self.kinds and node.value.id not in self.macros:
            found = self._object(node)
            if isinstance(found, FunctionType):
                return Go(quoted(self.program.template(found)), FUNCTION)
            return constant(found)
        owner = self._value(node.value)
        record = RECORDS.get(owner.kind.name)
        annotation = record.__annotations__.get(node.attr, "") if record else ""
        return Go(f"{owner.code}.{node.attr}", self._annotated(annotation))

    def _subscript(self, node: ast.Subscript) -> Go:
        owner = self._value(node.value)
        if isinstance(node.slice, ast.Slice):
            lower, upper = node.slice.lower, node.slice.upper
            first = self._value(lower).code if lower else "0"
            last = self._value(upper).code if upper else f"(len {owner.code})"
            return Go(f"(substr ({first} | int) ({last} | int) {owner.code})", STR)
        key = self._value(node.slice)
        if key.code == "-1":
            return Go(f"(last {owner.code})", owner.kind.element)
        return self._item(owner, key)

    def _item(self, owner: Go, key: Go) -> Go:
        if key.code.startswith('"'):
            name = json.loads(key.code)
            kind = self.program.kinds.get(name, owner.kind.value)
            if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) and owner.code != "dict":
                return Go(f"{owner.code}.{name}", kind)
            return Go(f"(index {owner.code} {key.code})", kind)
        return Go(f"(index {owner.code} {key.code})", owner.kind.value)

    def _list(self, elements: list[ast.expr]) -> Go:
        groups: list[str] = []
        plain: list[str] = []
        kinds: list[Kind] = []
        for element in elements:
            if isinstance(element, ast.Starred):
                if plain:
                    groups, plain = [*groups, f"(list {' '.join(plain)})"], []
                listed = self._listed(self._value(element.value), element.value)
                groups.append(listed.code)
                kinds += listed.kind.parts or [UNKNOWN]
            else:
                found = self._value(element)
                plain.append(found.code)
                kinds.append(found.kind)
        if plain or not groups:
            groups.append(f"(list {' '.join(plain)})" if plain else "list")
        return Go(groups[0] if len(groups) == 1 else f"(concat {' '.join(groups)})", Kind("tuple", tuple(kinds)))

    def _dict(self, node: ast.Dict) -> Go:
        parts: list[Go] = []
        plain: list[str] = []
        kinds: set[Kind] = set()
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                if plain:
                    parts, plain = [*parts, Go(f"(dict {' '.join(plain)})", DICT)], []
                parts.append(self._value(value))
                kinds.add(parts[-1].kind.value)
            else:
                found = self._value(value)
                plain += [self._value(key).code, found.code]
                kinds.add(found.kind)
        kind = Kind("dict", (STR, common(*kinds)))
        if plain:
            parts.append(Go(f"(dict {' '.join(plain)})", kind))
        if not parts:
            return Go("dict", DICT)
        return parts[0] if len(parts) == 1 and node.keys[0] is not None else self._updated(parts)

    def _updated(self, parts: list[Go]) -> Go:
        """A new dict of several. Sprig's merge would mix their values too."""
        found = self._temporary()
        self._emit(f"{found} := dict")
        for part in parts:
            self._emit(f"range $key, $item := {bare(part.code)}")
            self._emit(f"$_ := set {found} $key $item", deeper=True)
            self._emit("end")
        kinds = {part.kind.value for part in parts}
        return Go(found, Kind("dict", (STR, common(*kinds))))

    def _comprehension(self, generators: list[ast.comprehension], value: ast.expr, key: ast.expr | None = None) -> Go:
        found = self._temporary()
        self._emit(f"{found} := {'list' if key is None else 'dict'}")
        before = dict(self.kinds)
        kinds: list[Kind] = []

        def nested(rest: list[ast.comprehension]) -> None:
            if not rest:
                made = self._value(value)
                kinds.append(made.kind)
                if key is None:
                    self._emit(f"{found} = append {found} {made.code}")
                else:
                    self._emit(f"$_ := set {found} {self._value(key).code} {made.code}")
                return
            with self._range(rest[0].target, rest[0].iter), self._filtered(rest[0].ifs):
                nested(rest[1:])

        nested(generators)
        self.kinds = before
        return Go(found, Kind("list", (kinds[0],)) if key is None else Kind("dict", (STR, kinds[0])))

    @contextmanager
    def _filtered(self, conditions: list[ast.expr]) -> Iterator[None]:
        """The body of a loop that runs where all conditions hold."""
        for condition in conditions:
            self._emit(f"if {bare(self._value(condition).code)}")
            self.depth += 1
            self.kinds |= _narrowing(condition, self.kinds)
        yield
        for _ in conditions:
            self.depth -= 1
            self._emit("end")

    def _short_circuit(self, operator: str, values: list[ast.expr]) -> Go:
        """`and` or `or`. What a later operand computes first must not run where Python would not run it."""
        first, *others = values
        found = self._value(first)
        kinds = {found.kind}
        for other in others:
            lines, self.lines = self.lines, []
            with self._deeper(), self._narrowed(first if operator == "and" else None):
                operand = self._value(other)
            prepared, self.lines = self.lines, lines
            kinds.add(operand.kind)
            if not prepared:
                found = Go(f"({operator} {found.code} {operand.code})")
                continue
            result = self._temporary()
            self._emit(f"{result} := {found.code}")
            self._emit(f"if {result}" if operator == "and" else f"if not {result}")
            self.lines += prepared
            self._emit(f"{result} = {operand.code}", deeper=True)
            self._emit("end")
            found = Go(result)
        return Go(found.code, common(*kinds))

    def _choice(self, test: ast.expr, body: ast.expr, orelse: ast.expr) -> Go:
        result = self._temporary()
        self._emit(f'{result} := ""')
        self._emit(f"if {bare(self._value(test).code)}")
        kinds = []
        for branch in (body, orelse):
            with self._deeper(), self._narrowed(test if branch is body else None):
                found = self._value(branch)
                self._emit(f"{result} = {NONE if found.code == 'nil' else found.code}")
            kinds.append(found.kind)
            self._emit("else" if branch is body else "end")
        return Go(result, common(*kinds))

    def _operation(self, node: ast.BinOp) -> Go:
        left, right = self._value(node.left), self._value(node.right)
        if isinstance(node.op, ast.Add):
            if {left.kind.name, right.kind.name} & set(LISTS):
                return Go(
                    f"(concat {left.code} {right.code})",
                    Kind("list", (common(left.kind.element, right.kind.element),)),
                )
            if STR in (left.kind, right.kind):
                return Go(f"(print {left.code} {right.code})", STR)
            if INT in (left.kind, right.kind):
                return Go(f"(add {left.code} {right.code})", INT)
            raise self._error(node, "a sum of values whose types are not known")
        if (
            isinstance(node.op, ast.Pow)
            and isinstance(node.left, ast.Constant)
            and isinstance(node.right, ast.Constant)
        ):
            return constant(node.left.value**node.right.value)  # type: ignore[operator]
        if function := _ARITHMETIC.get(type(node.op)):
            if FLOAT in (left.kind, right.kind):
                return Go(f"({function}f {left.code} {right.code})", FLOAT)
            return Go(f"({function} {left.code} {right.code})", INT)
        raise self._error(node, "this operator")

    def _comparison(self, node: ast.Compare) -> Go:
        found = []
        left = node.left
        for operator, right in zip(node.ops, node.comparators, strict=True):
            found.append(self._compared(node, left, operator, right))
            left = right
        return Go(found[0] if len(found) == 1 else f"(and {' '.join(found)})", BOOL)

    def _compared(self, node: ast.Compare, left: ast.expr, operator: ast.cmpop, right: ast.expr) -> str:
        if isinstance(operator, ast.Is | ast.IsNot):
            check = f'(kindIs "invalid" {self._value(left).code})'
            return check if isinstance(operator, ast.Is) else f"(not {check})"
        if isinstance(operator, ast.In | ast.NotIn):
            check = self._contained(node, self._value(left), self._value(right))
            return check if isinstance(operator, ast.In) else f"(not {check})"
        if isinstance(right, ast.List) and not right.elts:
            value = self._value(left).code
            return f'(and (kindIs "slice" {value}) (not {value}))'
        one, other = self._value(left), self._value(right)
        if FLOAT in (one.kind, other.kind):  # Go does not compare it with an int
            one, other = (Go(f"{each.code}.0") if each.kind == INT else each for each in (one, other))
        return f"({_COMPARISONS[type(operator)]} {one.code} {other.code})"

    def _contained(self, node: ast.Compare, item: Go, whole: Go) -> str:
        if whole.kind.name in LISTS:
            return f"(has {item.code} {whole.code})"
        if whole.kind.name == "dict":
            return f"(hasKey {whole.code} {item.code})"
        if whole.kind == STR:
            return f"(contains {item.code} {whole.code})"
        raise self._error(node, f"a search in {ast.unparse(node.comparators[0])}, whose type is not known,")

    # Calls ----------------------------------------------------------------------------------------------------------

    def _call(self, node: ast.Call) -> Go:
        if isinstance(node.func, ast.Name) and node.func.id in self.macros:
            return self._macro(node, self.macros[node.func.id])
        if isinstance(node.func, ast.Attribute) and not self._is_module(node.func.value):
            return self._method(node, node.func)
        if not isinstance(node.func, ast.Name | ast.Attribute):
            return self._dynamic(self._value(node.func), node)
        if isinstance(node.func, ast.Name) and node.func.id in self.kinds:
            return self._dynamic(self._value(node.func), node)
        function = self._object(node.func)
        if function in self.program.builtins:
            builtin, arguments = self.program.builtins[function], [self._value(each).code for each in node.args]
            if isinstance(builtin, tuple):
                return self._run(f'template "{PREFIX}.{builtin[0]}"', arguments, builtin[1])
            return builtin(*arguments)
        if isinstance(function, FunctionType):
            return self._called(self.program.template(function), function, node)
        if isinstance(function, type) and dataclasses.is_dataclass(function):
            return self._record(function, node)
        if isinstance(function, type) and function.__module__ == self.module.__name__:
            return self._constructed(function, node)
        if ast.unparse(node.func) in _BUILTINS:
            return _BUILTINS[ast.unparse(node.func)](self, node)
        raise self._error(node, f"a call of {ast.unparse(node.func)}")

    def _is_module(self, node: ast.expr) -> bool:
        try:
            return not (isinstance(node, ast.Name) and node.id in self.kinds) and isinstance(
                self._object(node), ModuleType
            )
        except Untranslatable:
            return False

    def _macro(self, node: ast.Call, macro: ast.FunctionDef) -> Go:
        """The value of a function inside of the function, whose body is one expression (and a docstring)."""
        *_, last = macro.body
        if not isinstance(last, ast.Return) or last.value is None or len(macro.body) > 2:
            raise self._error(macro, "a function inside of a function with more than one statement")
        names = [argument.arg for argument in macro.args.args]
        given = dict(zip(names, node.args, strict=False))
        if macro.args.kwarg:
            given[macro.args.kwarg.arg] = _keywords(node.keywords)
        else:
            given |= {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
        return self._value(_Replaced(given).visit(_copied(last.value)))

    def _called(self, template: str, function: Any, node: ast.Call, receiver: Go | None = None) -> Go:
        signature = inspect.signature(function)
        arguments = [] if receiver is None else [receiver.code]
        positional = [self._value(value).code for value in node.args if not isinstance(value, ast.Starred)]
        if any(isinstance(value, ast.Starred) for value in node.args):
            raise self._error(node, "a call with *")
        names = [
            name for name, parameter in signature.parameters.items() if parameter.kind is not parameter.VAR_KEYWORD
        ]
        variable = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
        arguments += positional
        keywords = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
        for name in names[len(arguments) :]:
            if name in keywords:
                arguments.append(self._value(keywords.pop(name)).code)
            else:
                arguments.append(constant(signature.parameters[name].default).code)
        if variable:
            rest = [keyword for keyword in node.keywords if keyword.arg is None or keyword.arg in keywords]
            arguments.append(self._dict(_keywords(rest)).code)
        kind = self._annotated(_returns(function))
        return self._run(f"template {quoted(template)}", arguments, kind)

    def _run(self, action: str, arguments: list[str], kind: Kind) -> Go:
        frame = self._temporary()
        listed = f"(list {' '.join(arguments)})" if arguments else "list"
        self._emit(f'{frame} := dict "args" {listed}')
        self._emit(f"{action} {frame}")
        return Go(f"{frame}.result", kind)

    def _dynamic(self, function: Go, node: ast.Call) -> Go:
        """A call of a function that is a value. The text that `include` returns is empty."""
        return self._run(f"$_ := include {function.code}", [self._value(argument).code for argument in node.args], LIST)

    def _constructed(self, owner: type, node: ast.Call) -> Go:
        initial: Any = owner.__init__  # type: ignore[misc]
        made = self._called(self.program.template(initial, owner), initial, node, Go("nil"))
        return Go(made.code, Kind(owner.__name__))

    def _record(self, owner: Any, node: ast.Call) -> Go:
        """A new object of a dataclass: a dict, to which the properties belong as well."""
        fields = dataclasses.fields(owner)
        values = self._list(node.args)
        made = self._temporary()
        defaults = {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
        self._emit(f"{made} := {constant(defaults).code}")
        index = self._temporary()
        names = constant([field.name for field in fields]).code
        if node.args:
            self._emit(f"range {index}, $item := {bare(values.code)}")
            self._emit(f"$_ := set {made} (index {names} {index}) $item", deeper=True)
            self._emit("end")
        for keyword in node.keywords:
            if keyword.arg is None:
                raise self._error(node, "a call with **")
            self._emit(f"$_ := set {made} {quoted(keyword.arg)} {self._value(keyword.value).code}")
        for name, each in vars(owner).items():
            if isinstance(each, property) and each.fget:
                found = self._run(f"template {quoted(self.program.template(each.fget, owner))}", [made], UNKNOWN)
                self._emit(f"$_ := set {made} {quoted(name)} {found.code}")
        RECORDS[owner.__name__] = owner
        return Go(made, Kind(owner.__name__))

    def _method(self, node: ast.Call, function: ast.Attribute) -> Go:
        name = function.attr
        if ast.unparse(function) == "dict.fromkeys":
            keys = self._listed(self._value(node.args[0]), node.args[0])
            return Go(f"({keys.code} | uniq)", keys.kind)
        if isinstance(function.value, ast.Name) and function.value.id not in self.kinds:
            pattern = self._object(function.value)
            if isinstance(pattern, re.Pattern):
                return self._matched(node, name, pattern)
        owner = self._value(function.value)
        if known := self._classes().get(owner.kind.name):
            method = getattr(known, name)
            template = self.program.template(method, known)
            return self._called(template, method, node, owner)
        arguments = [self._value(argument) for argument in node.args]
        codes = [argument.code for argument in arguments]
        form = _METHODS.get((name, len(codes)))
        # Python also takes a tuple of prefixes or suffixes.
        if form and (name not in ("startswith", "endswith") or arguments[0].kind == STR):
            return Go(form[0].format(owner.code, *codes), form[1])
        match name, len(codes):
            case "get", 1:
                return self._item(owner, arguments[0])
            case "get", 2:
                found = self._item(owner, arguments[0])
                kind = found.kind if found.kind != UNKNOWN else arguments[1].kind
                return Go(f"(ternary {found.code} {codes[1]} (hasKey {owner.code} {codes[0]}))", kind)
            case "rstrip", 1:
                pattern = f"[{json.loads(codes[0])}]+$"
                return Go(f'(regexReplaceAll {quoted(pattern)} {owner.code} "")', STR)
            case "partition" | "rpartition", 1:
                return self._run(f'template "{PREFIX}.{name}"', [owner.code, codes[0]], LIST)
            case "count", 1:
                return self._run(f'template "{PREFIX}.count"', [owner.code, codes[0]], INT)
        raise self._error(node, f"a call of the method {name}")

    def _matched(self, node: ast.Call, name: str, pattern: re.Pattern[str]) -> Go:
        found = {"fullmatch": f"^(?:{pattern.pattern})$", "search": pattern.pattern, "match": f"^(?:{pattern.pattern})"}
        return Go(f"(regexMatch {quoted(found[name])} {self._value(node.args[0]).code})", BOOL)

    # Types ----------------------------------------------------------------------------------------------------------

    def _annotated(self, annotation: str) -> Kind:
        return self._kind(ast.parse(annotation, mode="eval").body) if annotation else UNKNOWN

    def _kind(self, node: ast.expr) -> Kind:
        match node:
            case ast.BinOp(left=left, right=right):
                return self._kind(left) if ast.unparse(right) == "None" else UNKNOWN
            case ast.Subscript(value=base, slice=inner):
                found = self._kind(base)
                items = inner.elts if isinstance(inner, ast.Tuple) else [inner]
                parts = tuple(self._kind(item) for item in items if ast.unparse(item) != "...")
                endless = len(parts) < len(items)
                return Kind("list" if endless else found.name, parts) if found != UNKNOWN else UNKNOWN
            case ast.Name(id=name) | ast.Attribute(attr=name):
                meant = getattr(self.module, name, None)
                if isinstance(meant, GenericAlias):
                    return self._annotated(str(meant))
                if isinstance(meant, type) and dataclasses.is_dataclass(meant):
                    RECORDS[name] = meant
                    return Kind(name)
                return Kind(name if name in self._classes() else _ANNOTATIONS.get(name, ""))
        return UNKNOWN

    def _classes(self) -> dict[str, type]:
        return {
            name: value
            for name, value in vars(self.module).items()
            if isinstance(value, type)
            and value.__module__ == self.module.__name__
            and not dataclasses.is_dataclass(value)
            and "__init__" in vars(value)
        }

    def _listed(self, found: Go, node: ast.expr) -> Go:
        """A value that is looped over as a list. A mapping gives its keys."""
        if found.kind.name in LISTS:
            return found
        if found.kind.name == "dict":
            return Go(f"(keys {found.code} | sortAlpha)", Kind("list", (STR,)))
        raise self._error(node, f"a loop over {ast.unparse(node)}, whose type is not known,")

    # Lines ----------------------------------------------------------------------------------------------------------

    def _held(self, found: Go) -> Go:
        held = self._temporary()
        self._emit(f"{held} := {found.code}")
        return Go(held, found.kind)

    def _temporary(self) -> str:
        self.temporaries += 1
        return f"$t{self.temporaries}"

    def _emit(self, action: str, *, deeper: bool = False) -> None:
        self.lines.append(f"{'  ' * (self.depth + deeper)}{{{{- {action} -}}}}")

    @contextmanager
    def _narrowed(self, test: ast.expr | None) -> Iterator[None]:
        """What `isinstance` has found of a variable's type is known in the branch."""
        before = dict(self.kinds)
        narrowed = _narrowing(test, before)
        self.kinds |= narrowed
        yield
        self.kinds |= {name: before[name] for name in narrowed if name in before}

    @contextmanager
    def _deeper(self) -> Iterator[None]:
        self.depth += 1
        yield
        self.depth -= 1

    def _own_nodes(self) -> Iterator[ast.AST]:
        """The nodes of the function without those of the functions inside of it."""
        waiting: list[ast.AST] = list(self.tree.body)
        while waiting:
            node = waiting.pop()
            yield node
            waiting += [child for child in ast.iter_child_nodes(node) if not isinstance(node, ast.FunctionDef)]

    def _assigned(self) -> set[str]:
        found = set()
        for node in self._own_nodes():
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.NamedExpr):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    names = target.elts if isinstance(target, ast.Tuple) else [target]
                    found |= {name.id for name in names if isinstance(name, ast.Name)}
        return found

    def _error(self, node: Any, what: str) -> Untranslatable:
        path = Path(inspect.getsourcefile(self.function) or "?")
        line = self.first + getattr(node, "lineno", 1) - 1
        return Untranslatable(f"{path.name}:{line}: {what} cannot be translated to a Go template")


class _Replaced(ast.NodeTransformer):
    """Puts expressions in the place of names."""

    def __init__(self, given: Mapping[str, ast.expr]) -> None:
        self.given = given

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return self.given.get(node.id, node)


def _keywords(keywords: list[ast.keyword]) -> ast.Dict:
    """The keywords of a call as a dict."""
    return ast.Dict(
        keys=[ast.Constant(keyword.arg) if keyword.arg else None for keyword in keywords],
        values=[keyword.value for keyword in keywords],
    )


def _copied(node: ast.expr) -> ast.expr:
    copy = ast.parse(ast.unparse(node), mode="eval").body
    for each in ast.walk(copy):
        if hasattr(each, "lineno"):
            each.lineno = node.lineno
    return copy


def _parameters(tree: ast.FunctionDef) -> list[tuple[str, str]]:
    """Names and annotations, the variable keywords last."""
    found = [*tree.args.posonlyargs, *tree.args.args, *tree.args.kwonlyargs]
    parameters = [(each.arg, ast.unparse(each.annotation) if each.annotation else "") for each in found]
    return parameters + (
        [(tree.args.kwarg.arg, f"dict[str, {ast.unparse(tree.args.kwarg.annotation)}]")] if tree.args.kwarg else []
    )


def _narrowing(test: ast.expr | None, known: Mapping[str, Kind]) -> dict[str, Kind]:
    """What a test by `isinstance` tells of a variable whose type is not known."""
    match test:
        case ast.Call(func=ast.Name(id="isinstance"), args=[ast.Name(id=name), ast.Name(id=kind)]):
            return {name: Kind(_ANNOTATIONS.get(kind, ""))} if known.get(name, UNKNOWN) == UNKNOWN else {}
    return {}


def _unpacked(kind: Kind, count: int) -> tuple[Kind, ...]:
    """The types of the parts of a tuple."""
    return kind.parts if len(kind.parts) == count else (kind.element,) * count


def _returns(function: Any) -> str:
    return str(function.__annotations__.get("return", ""))


def _ends(statements: list[ast.stmt]) -> bool:
    """Whether a block always returns."""
    last = statements[-1]
    if isinstance(last, ast.If):
        return bool(last.orelse) and _ends(last.body) and _ends(last.orelse)
    return isinstance(last, ast.Return)


def _leaves(statement: ast.stmt) -> bool:
    """Whether a statement may return."""
    inside = not isinstance(statement, ast.FunctionDef)
    return inside and any(isinstance(each, ast.Return) for each in ast.walk(statement))


def _any(function: _Function, node: ast.Call, wanted: bool) -> Go:
    """`any` and `all`, which look for an item that decides."""
    loop, value = _generator(function, node)
    test = value if wanted else ast.copy_location(ast.UnaryOp(ast.Not(), value), value)
    found = _searched(function, loop, [*loop.ifs, test], ast.Constant(wanted), ast.Constant(not wanted))
    return Go(found.code, BOOL)


def _next(function: _Function, node: ast.Call) -> Go:
    loop, value = _generator(function, node)
    return _searched(function, loop, loop.ifs, value, node.args[1])


def _generator(function: _Function, node: ast.Call) -> tuple[ast.comprehension, ast.expr]:
    """The loop and the element of a generator with one loop, which is the first argument of a call."""
    match node.args[0]:
        case ast.GeneratorExp(elt=element, generators=[loop]):
            return loop, element
    raise function._error(node, f"a call of {ast.unparse(node.func)} with something else than a generator")


def _searched(
    function: _Function, loop: ast.comprehension, conditions: list[ast.expr], value: ast.expr, default: ast.expr
) -> Go:
    """The value for the first item for which all conditions hold, or else the default."""
    found, before = function._temporary(), dict(function.kinds)
    start = function._value(default)
    function._emit(f"{found} := {start.code}")
    with function._range(loop.target, loop.iter), function._filtered(conditions):
        function._emit(f"{found} = {function._value(value).code}")
        function._emit("break")
    function.kinds = before
    return Go(found, start.kind)


def _extreme(function: _Function, node: ast.Call, name: str) -> Go:
    if len(node.args) > 1:
        return Go(f"({name} {' '.join(function._value(each).code for each in node.args)})", INT)
    found, values = function._temporary(), function._value(node.args[0])
    function._emit(f"{found} := index {values.code} 0")
    function._emit(f"range $item := {bare(values.code)}")
    function._emit(f"{found} = {name} {found} $item", deeper=True)
    function._emit("end")
    return Go(found, INT)


def _isinstance(function: _Function, node: ast.Call) -> Go:
    value = function._value(node.args[0]).code
    wanted = ast.unparse(node.args[1]).split(" | ")
    checks = [f"(kindIs {quoted(_KINDS[kind])} {value})" for kind in wanted]
    return Go(checks[0] if len(checks) == 1 else f"(or {' '.join(checks)})", BOOL)


def _mapped(function: _Function, node: ast.Call) -> Go:
    called, iterated = node.args
    element = ast.Call(func=called, args=[ast.Name(id="each")], keywords=[])
    generator = ast.comprehension(target=ast.Name(id="each"), iter=iterated, ifs=[], is_async=0)
    for made in (element, generator.target):
        ast.copy_location(made, node)
    ast.fix_missing_locations(element)
    return function._comprehension([generator], element)


def _simple(form: str, kind: Kind) -> Callable[[_Function, ast.Call], Go]:
    def call(function: _Function, node: ast.Call) -> Go:
        codes = [function._value(each).code for each in node.args]
        return Go(form.format(*codes), kind)

    return call


def _as_list(function: _Function, node: ast.Call) -> Go:
    return function._listed(function._value(node.args[0]), node.args[0]) if node.args else Go("list", LIST)


def _as_dict(function: _Function, node: ast.Call) -> Go:
    found = function._value(node.args[0])
    if found.kind.name not in LISTS:
        return function._updated([found])
    made = function._temporary()
    function._emit(f"{made} := dict")
    function._emit(f"range $item := {bare(found.code)}")
    function._emit(f"$_ := set {made} (index $item 0) (index $item 1)", deeper=True)
    function._emit("end")
    return Go(made, Kind("dict", found.kind.element.parts))


_BUILTINS: dict[str, Callable[[_Function, ast.Call], Go]] = {
    "any": lambda function, node: _any(function, node, True),
    "all": lambda function, node: _any(function, node, False),
    "next": _next,
    "max": lambda function, node: _extreme(function, node, "max"),
    "min": lambda function, node: _extreme(function, node, "min"),
    "isinstance": _isinstance,
    "map": _mapped,
    "list": _as_list,
    "tuple": _as_list,
    "dict": _as_dict,
    "set": lambda function, node: Go(f"({_as_list(function, node).code} | uniq)", Kind("set")),
    "len": _simple("(len {})", INT),
    "bool": _simple("(not (not {}))", BOOL),
    "str": _simple("(toString {})", STR),
    "int": _simple("(int64 {})", INT),
    "range": _simple("(until ({} | int))", Kind("list", (INT,))),
    "sorted": lambda function, node: Go(f"({_as_list(function, node).code} | sortAlpha)", LIST),
}

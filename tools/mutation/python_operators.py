"""Operators of mutation that Cosmic Ray lacks, in its form: an argument dropped, a call skipped, a default changed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import parso
from cosmic_ray.operators.operator import Example, Operator
from parso.python.tree import Name

Node: TypeAlias = Any
Span: TypeAlias = "tuple[tuple[int, int], tuple[int, int]]"

# Calls that say what something is, or make it of another type with the same value.
CONVERSIONS = {"bool", "cast", "dict", "float", "int", "iter", "list", "str", "tuple"}


def _span(node: Node) -> Span:
    return node.start_pos, node.end_pos


def is_call(node: Node) -> bool:
    """True for f(...), whatever f is."""
    last = node.children[-1] if node.type in ("atom_expr", "power") else None
    return last is not None and last.type == "trailer" and last.children[0].value == "("


class DropArgument(Operator):
    """Leaves out a keyword argument of a call, or the last positional one of several."""

    def mutation_positions(self, node: Node) -> Iterable[Span]:
        return [_span(node.children[i]) for i in self._droppable(node)]

    def mutate(self, node: Node, index: int) -> Node:
        at = self._droppable(node)[index]
        if node.type == "arglist":  # with the comma before it, or for the first one the comma behind it
            comma = at - 1 if at else at + 1
            node.children = [child for i, child in enumerate(node.children) if i not in (at, comma)]
        else:
            del node.children[at]
        return node

    @staticmethod
    def _droppable(node: Node) -> list[int]:
        if node.type == "trailer" and node.children[0].value == "(" and len(node.children) == 3:
            return [1] if _is_keyword(node.children[1]) else []
        if node.type != "arglist" or node.parent.type != "trailer":
            return []
        given = [i for i, child in enumerate(node.children) if child.type != "operator"]
        positional = [i for i in given if node.children[i].type != "argument"]
        last = positional[-1:] if len(positional) > 1 else []
        return sorted(last + [i for i in given if _is_keyword(node.children[i])])

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return Example("f(a, k=1)", "f(a)"), Example("f(a, b)", "f(a)"), Example("f(k=1)", "f()")


def _is_keyword(node: Node) -> bool:
    return node.type == "argument" and node.children[1].type == "operator" and node.children[1].value == "="


class SkipCall(Operator):
    """Leaves out a statement that is a call; of f(x) leaves x, of x.f() too."""

    def mutation_positions(self, node: Node) -> Iterable[Span]:
        if node.type == "simple_stmt" and is_call(node.children[0]):
            return [_span(node.children[0])]
        inside = is_call(node) and node.parent.type != "simple_stmt" and self._operand(node) is not None
        return [_span(node)] if inside else []

    def mutate(self, node: Node, index: int) -> Node:
        if node.type == "simple_stmt":
            prefix = node.children[0].get_first_leaf().prefix
            node.children[0] = Name("pass", node.children[0].start_pos, prefix)
            return node
        return parso.parse(node.get_first_leaf().prefix + self._operand(node))

    @staticmethod
    def _operand(node: Node) -> str | None:
        *called, trailer = node.children
        inside = trailer.children[1:-1]
        if not inside:
            last = called[-1]
            if last.type != "trailer" or last.children[0].value != ".":
                return None
            return "".join(child.get_code() for child in called[:-1]).strip()
        name = called[-1].children[-1] if called[-1].type == "trailer" else called[-1]
        plain = inside[0].type not in ("arglist", "argument") and getattr(name, "value", "") not in CONVERSIONS
        return f"({inside[0].get_code().strip()})" if plain else None

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return Example("f(a, b)\n", "pass\n"), Example("x = f(a)", "x = (a)"), Example("x = a.f()", "x = a")


class ChangeDefault(Operator):
    """Another default of a parameter or of a field of a class."""

    def mutation_positions(self, node: Node) -> Iterable[Span]:
        value = default_of(node)
        return [_span(value)] if value is not None and _other(value) is not None else []

    def mutate(self, node: Node, index: int) -> Node:
        value: Node = default_of(node)
        owner = value.parent
        at = owner.children.index(value)
        owner.children[at] = parso.parse(value.get_first_leaf().prefix + str(_other(value)))
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (
            Example("def f(x=1): pass", "def f(x=2): pass"),
            Example("def f(x=None): pass", "def f(x=0): pass"),
            Example("class A:\n    x: bool = True\n", "class A:\n    x: bool = False\n"),
        )


def default_of(node: Node) -> Node | None:
    """The default of a parameter, or the value of an annotated field of a class; None for other nodes."""
    if node.type == "param":
        return node.default
    if node.type == "annassign" and len(node.children) == 4:
        suite: Node = node.parent.parent.parent  # of the statement with this expression
        if suite is not None and suite.parent is not None and suite.parent.type == "classdef":
            return node.children[3]
    return None


def _other(value: Node) -> str | None:
    """Another literal in place of one."""
    code = value.get_code().strip()
    if value.type == "number":
        return repr(2 * parsed + 1 if (parsed := float(code)) % 1 else int(parsed) + 1)
    if value.type == "string":
        return f"{code[:-1]}_{code[-1]}"
    return {"True": "False", "False": "True", "None": "0"}.get(code)

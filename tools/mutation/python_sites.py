"""All places of a Python file that Cosmic Ray's operators, and three of ours in its form, can make.

Left out are texts, annotations, imports, decorators, assertions, what raises, warns or logs, `__repr__`, and `strict=`
of a zip, which is an assertion; see `_SILENT` and `_is_silent`. Calls that only convert a type are not skipped
(`CONVERSIONS`). Texts are compared by == and != alone, and == never becomes `is`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import partial
from itertools import accumulate, count

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator, operator_names
from mutation.mutant import Site
from mutation.python_operators import ChangeDefault, DropArgument, Node, SkipCall, Span, default_of

# The beginning of the name of an operator, and the kind of mutation that it makes.
_KINDS = {
    "NumberReplacer": "constant",
    "ReplaceTrueWithFalse": "constant",
    "ReplaceFalseWithTrue": "constant",
    "ReplaceComparisonOperator": "comparison",
    "AddNot": "comparison",
    "ReplaceAndWithOr": "comparison",
    "ReplaceOrWithAnd": "comparison",
    "ReplaceUnaryOperator": "sign",
    "ReplaceBinaryOperator": "arithmetic",
    "ZeroIterationForLoop": "loop",
    "ReplaceBreakWithContinue": "loop",
    "ReplaceContinueWithBreak": "loop",
}
_OURS: dict[str, tuple[str, type[Operator]]] = {
    "DropArgument": ("argument", DropArgument),
    "SkipCall": ("call", SkipCall),
    "ChangeDefault": ("default", ChangeDefault),
}
# Nodes in which nothing is changed.
_SILENT = {"raise_stmt", "assert_stmt", "import_name", "import_from", "fstring", "decorator"}
_MESSAGES = {"require", "require_choice", "warn", "Refused", "refuse", "check_int"}


def operators() -> Iterator[tuple[str, Operator]]:
    """Kind of mutation, and operator."""
    for name in operator_names():
        short = name.rpartition("/")[2]
        kind = next((kind for start, kind in _KINDS.items() if short.startswith(start)), None)
        if kind is not None:
            yield kind, get_operator(name)()
    for kind, operator in _OURS.values():
        yield kind, operator()


def sites(path: str, source: str) -> Iterator[Site]:
    """Every place of `source` that an operator can change."""
    nodes, before = list(ast_nodes(get_ast(source))), ast.dump(ast.parse(source))
    starts = list(accumulate((len(line) for line in source.splitlines(keepends=True)), initial=0))
    silent = {id(node) for node in nodes if _is_silent(node)}
    live = {id(node) for node in nodes if not any(id(above) in silent for above in _upwards(node))}
    for kind, operator in operators():
        occurrences = count()
        for node in nodes:
            for span, occurrence in zip(operator.mutation_positions(node), occurrences):  # noqa: B905
                if id(node) in live and not _belongs_elsewhere(kind, operator, node, span):
                    start, end = (starts[line - 1] + column for line, column in span)
                    yield Site(path, kind, start, end, partial(_mutated, source, before, operator, occurrence))


def _mutated(source: str, before: str, operator: Operator, occurrence: int) -> str | None:
    """The source with a mutation; None if that is the same program, or none."""
    mutated = mutate_code(source, operator, occurrence)
    try:
        return mutated if mutated and ast.dump(ast.parse(mutated)) != before else None
    except SyntaxError:
        return None


def _upwards(node: Node) -> Iterator[Node]:
    while node is not None:
        yield node
        node = node.parent


def _belongs_elsewhere(kind: str, operator: Operator, node: Node, span: Span) -> bool:
    """What another kind changes, or what is hardly a mutation at all."""
    if kind == "arithmetic":  # the * before keyword-only parameters is none
        return bool(node.parent.type in ("parameters", "lambdef"))
    if kind == "comparison" and node.type == "comparison":
        old, new = type(operator).__name__.split("_")[1:]
        texts = any(child.type == "string" for child in node.children)
        return {old, new} != {"Eq", "NotEq"} if texts else (old.startswith("Is") != new.startswith("Is"))
    if kind == "constant":  # a literal that is a default is changed as a default
        return any(default_of(above) is node for above in _upwards(node.parent))
    if kind == "argument":
        dropped = next(child for child in node.children if child.start_pos == span[0])
        return bool(dropped.get_code().strip().startswith("strict="))
    return False


def _is_silent(node: Node) -> bool:
    """True for a node in which nothing is changed."""
    parent = node.parent
    if node.type in _SILENT or parent is None:
        return node.type in _SILENT
    siblings = parent.children
    place = next(i for i, sibling in enumerate(siblings) if sibling is node)
    before = siblings[place - 1] if place else None
    if before is not None and before.type == "operator" and before.value in (":", "->"):
        return parent.type in ("tfpdef", "annassign", "funcdef") and node.type != "suite"
    if node.type == "argument" and node.get_code().strip().startswith("strict="):
        return True
    if node.type == "funcdef":
        return bool(node.name.value in ("__repr__", "__str__"))
    if node.type == "if_stmt":
        return bool(node.children[1].get_code().strip() == "TYPE_CHECKING")
    return _is_message(node, before)


def _is_message(node: Node, before: Node | None) -> bool:
    """What a refusal or a warning says: all arguments of `require` and its like but the first, the condition."""
    if node.type == "simple_stmt" and node.children[0].type == "expr_stmt":
        return bool(node.children[0].children[0].get_code().strip() in ("__all__", "__slots__"))
    if node.type == "simple_stmt" and node.get_code().strip().startswith(("warnings.warn(", "logger.")):
        return True
    owner = node.parent.parent if node.parent.type == "arglist" else None
    if owner is None or owner.type != "trailer" or node.parent.children[0] is node:
        return False
    called = owner.parent.children[0].get_code().strip()
    return called in _MESSAGES

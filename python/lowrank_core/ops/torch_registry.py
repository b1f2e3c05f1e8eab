"""Registers with torch the operators that the families declared. Importing this module does it; it needs torch."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from lowrank_core.ops.declare import DECLARED, NAMESPACE, Op
from lowrank_core.ops.torch_autograd import Kernel, Rules, filler
from lowrank_core.ops.torch_vmap import batching_rule

_library: Any = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]


def _filling(function: Callable[..., Any], overload: Any) -> Callable[..., Any]:
    """`function`, called with the defaults that torch's dispatcher leaves out."""
    filled = filler(overload)

    def full(*args: Any, **options: Any) -> Any:
        args, options = filled(args, options)
        return function(*args, **options)

    return full


def _counting(run: Callable[..., Any], written: list[int]) -> Callable[..., Any]:
    """`run`, after which autograd knows that the arguments at the positions `written` have changed."""

    def counted(*args: Any, **options: Any) -> Any:
        result = run(*args, **options)
        for position in written:
            changed = args[position]
            torch.autograd.graph.increment_version(changed if isinstance(changed, list) else [changed])
        return result

    return counted


def _register(op: Op, rules: Rules) -> None:
    _library.define(op.schema)
    overload = getattr(getattr(torch.ops, NAMESPACE), op.name).default
    run = _filling(op.run, overload)
    if op.mutates:
        arguments = op.schema.partition("(")[2].split(", ")
        run = _counting(run, [i for i, argument in enumerate(arguments) if "!" in argument])
    for key in ("CPU", "CUDA"):
        _library.impl(op.name, run, key)
    qualified = f"{NAMESPACE}::{op.name}"
    torch.library.register_fake(qualified, _filling(op.fake, overload), lib=_library)
    _library.impl(op.name, Kernel(op, overload, rules), "Autograd")
    torch.library.register_vmap(qualified, batching_rule(op, overload, rules.mapped), lib=_library)


def _register_family(stem: str) -> None:
    """Registers all operators of a family, and those that its module of derivatives declares, which needs torch."""
    rules: dict[str, Rules] = import_module(f"{__package__}.{stem}.autograd").RULES
    for op in DECLARED[stem]:
        _register(op, rules.get(op.name, Rules()))


for _stem in DECLARED:
    _register_family(_stem)

ops = getattr(torch.ops, NAMESPACE)

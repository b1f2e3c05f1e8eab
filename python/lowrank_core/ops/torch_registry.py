"""Registers every family's operators with torch. Importing this module does it; it needs torch."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from lowrank_core.ops.chain_lr import OPS as CHAIN_LR
from lowrank_core.ops.chain_lr_attention import OPS as CHAIN_LR_ATTENTION
from lowrank_core.ops.chain_lr_features import OPS as CHAIN_LR_FEATURES
from lowrank_core.ops.chain_lr_linear import OPS as CHAIN_LR_LINEAR
from lowrank_core.ops.dct_select import OPS as DCT_SELECT
from lowrank_core.ops.dct_select_back import OPS as DCT_SELECT_BACK
from lowrank_core.ops.dct_select_feedback import OPS as DCT_SELECT_FEEDBACK
from lowrank_core.ops.dct_select_moments import OPS as DCT_SELECT_MOMENTS
from lowrank_core.ops.dct_select_transform import OPS as DCT_SELECT_TRANSFORM
from lowrank_core.ops.declare import NAMESPACE, Op
from lowrank_core.ops.int4_project import OPS as INT4_PROJECT
from lowrank_core.ops.kalman_diag import OPS as KALMAN_DIAG
from lowrank_core.ops.rsvd import OPS as RSVD
from lowrank_core.ops.rsvd_factor import OPS as RSVD_FACTOR
from lowrank_core.ops.rsvd_project import OPS as RSVD_PROJECT
from lowrank_core.ops.subspace_step import OPS as SUBSPACE_STEP
from lowrank_core.ops.torch_autograd import Kernel
from lowrank_core.ops.torch_vmap import batching_rule

FAMILIES: tuple[tuple[Op, ...], ...] = (
    *(RSVD, RSVD_FACTOR, RSVD_PROJECT),
    *(DCT_SELECT, DCT_SELECT_BACK, DCT_SELECT_FEEDBACK, DCT_SELECT_MOMENTS, DCT_SELECT_TRANSFORM),
    *(CHAIN_LR, CHAIN_LR_ATTENTION, CHAIN_LR_FEATURES, CHAIN_LR_LINEAR),
    INT4_PROJECT,
    KALMAN_DIAG,
    SUBSPACE_STEP,
)

_library: Any = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]


def _resolve(name: Callable[..., Any] | str) -> Callable[..., Any]:
    if not isinstance(name, str):
        return name
    module, _, function = name.partition(":")
    resolved: Callable[..., Any] = getattr(import_module(module), function)
    return resolved


def _counting(run: Callable[..., Any], written: list[int]) -> Callable[..., Any]:
    """`run`, after which autograd knows that the arguments at the positions `written` have changed."""

    def counted(*args: Any, **options: Any) -> Any:
        result = run(*args, **options)
        for position in written:
            changed = args[position]
            torch.autograd.graph.increment_version(changed if isinstance(changed, list) else [changed])
        return result

    return counted


def _register(op: Op) -> None:
    _library.define(op.schema)
    run = _resolve(op.run)
    if op.mutates:
        arguments = op.schema.partition("(")[2].split(", ")
        run = _counting(run, [i for i, argument in enumerate(arguments) if "!" in argument])
    for key in ("CPU", "CUDA"):
        _library.impl(op.name, run, key)
    qualified = f"{NAMESPACE}::{op.name}"
    torch.library.register_fake(qualified, _resolve(op.fake), lib=_library)
    overload = getattr(getattr(torch.ops, NAMESPACE), op.name).default
    kernel = Kernel(
        op,
        overload,
        backward=_resolve(op.backward) if op.backward else None,
        setup_context=_resolve(op.setup_context) if op.setup_context else None,
        forward=_resolve(op.forward) if op.forward else None,
    )
    _library.impl(op.name, kernel, "Autograd")
    rule = batching_rule(op, overload, _resolve(op.mapped) if op.mapped else None)
    torch.library.register_vmap(qualified, rule, lib=_library)


for _family in FAMILIES:
    for _op in _family:
        _register(_op)

ops = getattr(torch.ops, NAMESPACE)

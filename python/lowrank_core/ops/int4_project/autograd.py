"""Derivatives of the products with a packed basis: linear in the dense argument, each is the other's adjoint."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lowrank_core.ops.operators import torch_ops
from lowrank_core.ops.torch_autograd import Rules, multilinear


def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    packed, scales, offsets, *settings, _ = inputs
    ctx.save_for_backward(packed, scales, offsets)
    ctx.settings = settings


def project_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *(None,) * 7, torch_ops().int4_project_back(*ctx.saved_tensors, *ctx.settings, grad)


def project_back_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *(None,) * 7, torch_ops().int4_project(*ctx.saved_tensors, *ctx.settings, grad)


GRIDS = ("scales", "offsets")
RULES = {
    "int4_project": Rules(project_backward, save, multilinear, constants=GRIDS),
    "int4_project_back": Rules(project_back_backward, save, multilinear, constants=GRIDS),
}

"""Derivatives of the transforms: an orthogonal map's is its inverse, applied to the gradient."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lowrank_core.ops.declare import torch_ops


def save_dim(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.dim = inputs[1]


def dct_backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
    return torch_ops().idct(dy, ctx.dim), None


def idct_backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
    return torch_ops().dct(dy, ctx.dim), None

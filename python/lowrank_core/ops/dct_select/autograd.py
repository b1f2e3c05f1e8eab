"""Derivatives of the transforms, whose adjoint is their inverse, and of the transport of moments, which copies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lowrank_core.ops.operators import torch_ops
from lowrank_core.ops.torch_autograd import Rules, multilinear


def save_dim(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.dim = inputs[1]


def dct_backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
    return torch_ops().idct(dy, ctx.dim), None


def idct_backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
    return torch_ops().dct(dy, ctx.dim), None


def map_lines(overload: Any, in_dims: Sequence[Any], args: Sequence[Any], options: dict[str, Any]) -> Tensor:
    """A transform of every member: a dimension counted from the front moves by the mapped one."""
    x, dim = args[0].movedim(in_dims[0], 0), args[1] if len(args) > 1 else -1
    out: Tensor = overload(x, dim + 1 if dim >= 0 else dim, **options)
    return out


def rotate_forward(
    overload: Any, tangents: Sequence[Any], inputs: Sequence[Any], options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Both moments move as they are, each by itself."""
    moved = [torch.zeros_like(x) if t is None else t for t, x in zip(tangents[:2], inputs[:2], strict=True)]
    m, v = overload(*moved, *inputs[2:], **options)
    return m, v


RULES = {
    "dct": Rules(dct_backward, save_dim, multilinear, mapped=map_lines),
    "idct": Rules(idct_backward, save_dim, multilinear, mapped=map_lines),
    "dct_project_back": Rules(forward=multilinear),
    "rotate_moments": Rules(forward=rotate_forward),
}

"""Derivatives of chains and of adapter layers. First derivatives are compiled operators; second ones, torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowrank_core.ops.declare import torch_ops

# ---- chain_matmul --------------------------------------------------------------------------------------------------


def save_chain(ctx: Any, inputs: tuple[list[Tensor]], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[0])


def chain_backward(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    """d M_i = (M_0 ... M_(i-1))ᵀ grad (M_(i+1) ... M_n)ᵀ, itself a chain."""
    matrices = list(ctx.saved_tensors)
    grads: list[Tensor | None] = []
    for i, (matrix, needed) in enumerate(zip(matrices, ctx.needs_input_grad[0], strict=True)):
        if not needed:
            grads.append(None)
            continue
        before = [m.mT for m in reversed(matrices[:i])]
        after = [m.mT for m in reversed(matrices[i + 1 :])]
        grads.append(torch_ops().chain_matmul([*before, grad, *after]).sum_to_size(matrix.shape))
    return grads


# ---- layers --------------------------------------------------------------------------------------------------------


def save_layer(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Tensor) -> None:
    *tensors, bias = inputs
    ctx.save_for_backward(*tensors)
    ctx.scale = keyword_only_inputs["scale"]
    ctx.bias_dtype = None if bias is None else bias.dtype


def lora_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, w, a, b = ctx.saved_tensors
    dx, da, db = torch_ops().lora_linear_backward(
        dy, x, w, a, b, scale=ctx.scale, input_grad=bool(ctx.needs_input_grad[0])
    )
    dw, dbias = _full_gradients(ctx, dy, x, w)
    return dx if ctx.needs_input_grad[0] else None, dw, da, db, dbias


def usv_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, w, u, s, v = ctx.saved_tensors
    dx, du, ds, dv = torch_ops().usv_linear_backward(
        dy, x, w, u, s, v, scale=ctx.scale, input_grad=bool(ctx.needs_input_grad[0])
    )
    dw, dbias = _full_gradients(ctx, dy, x, w)
    return dx if ctx.needs_input_grad[0] else None, dw, du, ds, dv, dbias


def _full_gradients(ctx: Any, dy: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Those of the weight and of the bias, where they are wanted."""
    with torch.autocast(x.device.type, enabled=False):
        dw = (_rows(dy).mT @ _rows(x)).to(w.dtype) if ctx.needs_input_grad[1] else None
    wanted = ctx.bias_dtype is not None and ctx.needs_input_grad[-1]
    dbias = _rows(dy).sum(0, dtype=ctx.bias_dtype) if wanted else None
    return dw, dbias


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


# ---- second derivatives --------------------------------------------------------------------------------------------


def save_gradient(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
    ctx.save_for_backward(*inputs)
    ctx.scale = keyword_only_inputs["scale"]
    ctx.input_grad = keyword_only_inputs["input_grad"]


def lora_second(ctx: Any, gx: Tensor, ga: Tensor, gb: Tensor) -> tuple[Tensor | None, ...]:
    """The derivative of dx = dy w + scale (dy b) a, da = scale (dy b)ᵀ x, db = scale dyᵀ (x aᵀ), as torch's own."""
    with torch.enable_grad():
        leaves, (dy, x, w, a, b) = _leaves(ctx)
        low = dy @ b
        inner = ctx.scale * ((low.mT @ x) * ga).sum() + ctx.scale * ((dy.mT @ (x @ a.mT)) * gb).sum()
        if ctx.input_grad:
            inner = inner + ((dy @ w + ctx.scale * (low @ a)) * _rows(gx)).sum()
        return _gradients(inner, leaves)


def usv_second(ctx: Any, gx: Tensor, gu: Tensor, gs: Tensor, gv: Tensor) -> tuple[Tensor | None, ...]:
    """The derivative of dx = dy w + scale ((dy u) s) vᵀ and ds = scale (dy u)ᵀ (x v) in dy, x, w and s."""
    if ctx.needs_input_grad[3] or ctx.needs_input_grad[5]:
        raise NotImplementedError(
            "usv_linear: has no second derivative through `u` and `v`, whose gradients are those of K = U S and "
            "L = V Sᵀ; detach them"
        )
    with torch.enable_grad():
        leaves, (dy, x, w, u, s, v) = _leaves(ctx)
        low = dy @ u
        inner = ctx.scale * ((low.mT @ (x @ v)) * gs).sum()
        if ctx.input_grad:
            inner = inner + ((dy @ w + ctx.scale * (low @ s) @ v.mT) * _rows(gx)).sum()
        return _gradients(inner, leaves)


def _leaves(ctx: Any) -> tuple[list[Tensor], list[Tensor]]:
    """What was saved, and the same as matrices of one dtype; a leaf is followed where its gradient is wanted."""
    needed = ctx.needs_input_grad
    leaves = [t.detach().requires_grad_(bool(n)) for t, n in zip(ctx.saved_tensors, needed, strict=False)]
    double = any(t.dtype == torch.float64 for t in leaves)
    return leaves, [_rows(t).to(torch.float64 if double else torch.float32) for t in leaves]


def _gradients(inner: Tensor, leaves: list[Tensor]) -> tuple[Tensor | None, ...]:
    followed = [t for t in leaves if t.requires_grad]
    found = iter(torch.autograd.grad(inner, followed, allow_unused=True) if inner.requires_grad else ())
    return tuple(next(found, None) if t.requires_grad else None for t in leaves)

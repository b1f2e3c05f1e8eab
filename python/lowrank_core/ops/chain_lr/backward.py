"""Reverse-mode derivatives of chains and adapter layers: the first are compiled operators, further ones torch's."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lowrank_core.ops.operators import torch_ops

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
        grads.append(_product([*before, grad, *after], grad).sum_to_size(matrix.shape))
    return grads


def _product(matrices: list[Tensor], grad: Tensor) -> Tensor:
    """Their chain; by torch's own products under `is_grads_batched`, which maps no operator of a list."""
    if torch._C._functorch.is_legacy_batchedtensor(grad):
        return functools.reduce(torch.matmul, matrices)
    product: Tensor = torch_ops().chain_matmul(matrices)
    return product


def map_chain(overload: Any, in_dims: Sequence[Any], args: Sequence[Any], options: dict[str, Any]) -> Tensor:
    """Chains of all members: the mapped dimension comes before those that broadcast."""
    matrices, dims = args[0], in_dims[0]
    longest = max(m.ndim - (dim is not None) for m, dim in zip(matrices, dims, strict=True))
    led = []
    for m, dim in zip(matrices, dims, strict=True):
        if dim is not None:
            m = m.movedim(dim, 0)
            m = m.reshape(m.shape[0], *(1,) * (longest + 1 - m.ndim), *m.shape[1:])
        led.append(m)
    out: Tensor = overload(led, **options)
    return out


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


def _full_gradients(ctx: Any, dy: Tensor, x: Tensor, w: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Those of the weight and of the bias, where they are wanted."""
    with torch.autocast(x.device.type, enabled=False):
        dw = (_rows(dy).mT @ _rows(x)).to(w.dtype) if w is not None and ctx.needs_input_grad[1] else None
    wanted = ctx.bias_dtype is not None and ctx.needs_input_grad[-1]
    dbias = _rows(dy).sum(0, dtype=ctx.bias_dtype) if wanted else None
    return dw, dbias


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


# ---- second derivatives --------------------------------------------------------------------------------------------

NO_SECOND = (
    "usv_linear: has no second derivative through `u` and `v`, whose gradients are those of K = U S and L = V Sᵀ; "
    "detach them"
)


def save_gradient(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
    ctx.save_for_backward(*inputs)
    ctx.scale = keyword_only_inputs["scale"]
    ctx.input_grad = keyword_only_inputs["input_grad"]


def lora_second(ctx: Any, gx: Tensor, ga: Tensor, gb: Tensor) -> tuple[Tensor | None, ...]:
    """The derivative of dx = dy w + scale (dy b) a, da = scale (dy b)ᵀ x, db = scale dyᵀ (x aᵀ)."""
    with torch.autocast(gx.device.type, enabled=False):
        dy, x, w, a, b, ga, gb, gx = wide(*ctx.saved_tensors, ga, gb, gx if ctx.input_grad else None)
        scale, low = ctx.scale, dy @ b
        to_low = scale * (x @ ga.mT)
        of_dy, of_x, of_a = scale * (x @ a.mT) @ gb.mT, scale * (low @ ga + (dy @ gb) @ a), scale * (dy @ gb).mT @ x
        if ctx.input_grad:
            to_low, of_a = to_low + scale * (gx @ a.mT), of_a + scale * low.mT @ gx
        of_dy, of_w = _through_weight(ctx, of_dy + to_low @ b.mT, dy, w, gx)
        return _like(ctx, of_dy, of_x, of_w, of_a, dy.mT @ to_low)


def usv_second(ctx: Any, gx: Tensor, gu: Tensor, gs: Tensor, gv: Tensor) -> tuple[Tensor | None, ...]:
    """The derivative of dx = dy w + scale ((dy u) s) vᵀ and ds = scale (dy u)ᵀ (x v) in dy, x, w and s."""
    if ctx.needs_input_grad[3] or ctx.needs_input_grad[5]:
        raise NotImplementedError(NO_SECOND)
    with torch.autocast(gx.device.type, enabled=False):
        dy, x, w, u, s, v, gs, gx = wide(*ctx.saved_tensors, gs, gx if ctx.input_grad else None)
        scale, low = ctx.scale, dy @ u
        to_low, of_s = scale * ((x @ v) @ gs.mT), None
        if ctx.input_grad:
            to_low, of_s = to_low + scale * ((gx @ v) @ s.mT), scale * low.mT @ (gx @ v)
        of_dy, of_w = _through_weight(ctx, to_low @ u.mT, dy, w, gx)
        return _like(ctx, of_dy, scale * (low @ gs) @ v.mT, of_w, None, of_s, None)


def wide(*arrays: Tensor | None) -> Any:
    """Matrices of one dtype, float64 where one of them is, else float32; None stays."""
    double = any(t is not None and t.dtype == torch.float64 for t in arrays)
    dtype = torch.float64 if double else torch.float32
    return [None if t is None else _rows(t).to(dtype) for t in arrays]


def _through_weight(
    ctx: Any, of_dy: Tensor, dy: Tensor, w: Tensor | None, gx: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """What dx = dy w adds to the derivatives in dy and w, where it was asked for and there is a w."""
    if gx is None or w is None:
        return of_dy, None
    of_w = dy.mT @ gx if ctx.needs_input_grad[2] else None
    return of_dy + gx @ w.mT if ctx.needs_input_grad[0] else of_dy, of_w


def _like(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    """In the shapes and dtypes of what was saved, where they are wanted."""
    return tuple(
        grad.reshape(t.shape).to(t.dtype) if needed and grad is not None else None
        for grad, t, needed in zip(grads, ctx.saved_tensors, ctx.needs_input_grad, strict=True)
    )

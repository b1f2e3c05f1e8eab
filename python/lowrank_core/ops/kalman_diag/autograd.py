"""The derivative of the Kalman gain, as torch expressions that are differentiable themselves.

With K S = diag(p) Hᵀ, S = H diag(p) Hᵀ + R and X = S⁻¹ K̄ᵀ [m, n]:  dK = (d(diag(p) Hᵀ) - K dS) S⁻¹, hence

    S̄ = -sym(Kᵀ Xᵀ),    (diag(p) Hᵀ)‾ = Xᵀ + diag(p) Hᵀ S̄ once for each H in S.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowrank_core.ops.torch_autograd import Rules


def save_gain(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def gain_backward(ctx: Any, dk: Tensor) -> tuple[Tensor | None, ...]:
    p, h, r = ctx.saved_tensors
    with torch.autocast(h.device.type, enabled=False):
        grads = _vjp(p.double(), h.double(), r.double(), dk.double())
    return tuple(
        grad.to(like.dtype) if needed else None
        for grad, like, needed in zip(grads, (p, h, r), ctx.needs_input_grad, strict=True)
    )


def _vjp(p: Tensor, h: Tensor, r: Tensor, dk: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to p, h and r."""
    weighted = h * p
    s = weighted @ h.mT + _matrix(r, h.shape[0])
    k = torch.linalg.solve(s, weighted)
    x = torch.linalg.solve(s, dk.mT)
    product = k @ x.mT
    ds = -0.5 * (product + product.mT)
    dh = x * p + 2.0 * ds @ weighted
    dp = (x * h).sum(0) + ((ds @ h) * h).sum(0)
    dr = ds if r.ndim == 2 else ds.diagonal() if r.ndim == 1 else ds.diagonal().sum()
    return dp, dh, dr


def _matrix(r: Tensor, m: int) -> Tensor:
    if r.ndim == 2:
        return 0.5 * (r + r.mT)
    return torch.diag_embed(r.expand(m))


RULES = {"kalman_diag_gain": Rules(gain_backward, save_gain)}

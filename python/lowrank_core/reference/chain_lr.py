"""Family `chain_lr` in float64: the oracle of its tests and benches. Signatures are those of `lowrank_core.<name>`.

Tensors in, float64 tensors out. What the kernels avoid is formed here: gradients of full weights, all scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor


def chain_matmul(matrices: Sequence[Tensor]) -> Tensor:
    """From left to right."""
    return reduce(torch.matmul, [m.double() for m in matrices])


def chain_cost(dims: Sequence[int], traffic: float) -> float:
    """Least cost over every order of a chain of matrices [dims[i], dims[i + 1]], by trying all."""
    if len(dims) <= 2:
        return 0.0
    costs = []
    for k in range(1, len(dims) - 1):
        m, s, n = dims[0], dims[k], dims[-1]
        last = m * s * n + traffic * (m * s + s * n + m * n)
        costs.append(chain_cost(dims[: k + 1], traffic) + chain_cost(dims[k:], traffic) + last)
    return min(costs)


def lora_linear(
    x: Tensor, w: Tensor | None, a: Tensor, b: Tensor, *, scale: float, bias: Tensor | None = None
) -> Tensor:
    """By the full weight w + scale b a."""
    return _layer(x, w, scale * b.double() @ a.double(), bias)


def usv_linear(
    x: Tensor, w: Tensor | None, u: Tensor, s: Tensor, v: Tensor, *, scale: float, bias: Tensor | None = None
) -> Tensor:
    """By the full weight w + scale u s vᵀ; its derivatives in u and v are ordinary ones."""
    return _layer(x, w, scale * u.double() @ s.double() @ v.double().mT, bias)


def _layer(x: Tensor, w: Tensor | None, correction: Tensor, bias: Tensor | None) -> Tensor:
    y = x.double() @ (correction if w is None else w.double() + correction).mT
    return y if bias is None else y + bias.double()


def scaled_gradients(grad_a: Tensor, grad_b: Tensor, a: Tensor, b: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """(bᵀ b + damping I)⁻¹ grad_a and grad_b (a aᵀ + damping I)⁻¹ by LU with pivots."""
    grad_a, grad_b, a, b = (t.double() for t in (grad_a, grad_b, a, b))
    eye = damping * torch.eye(len(a), dtype=torch.float64)
    return torch.linalg.solve(b.mT @ b + eye, grad_a), torch.linalg.solve(a @ a.mT + eye, grad_b, left=False)


def full_gradient(x: Tensor, dy: Tensor) -> Tensor:
    """G = dyᵀ x of a linear layer, [d_out, d_in]."""
    return dy.double().reshape(-1, dy.shape[-1]).mT @ x.double().reshape(-1, x.shape[-1])


def attention_lora_grad(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    dout: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    weight: Tensor,
    scale: float = 1.0,
    causal: bool = False,
    key_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(da, db) by autograd through softmax over all scores."""
    a, b = a.detach().double().requires_grad_(), b.detach().double().requires_grad_()
    q, k, v, g = (
        _heads(x.double(), queries.shape[-3] if queries.ndim > 2 else 1) for x in (queries, keys, values, dout)
    )
    scores = q @ (weight.double() + scale * b @ a) @ k.mT
    hidden = torch.zeros_like(scores, dtype=torch.bool)
    if causal:
        hidden = hidden | torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    if key_mask is not None:
        mask = key_mask[..., None, :]
        hidden = hidden | ~(_heads(mask, q.shape[-3]) if mask.ndim > 2 else mask)
    f = scores.masked_fill(hidden, -math.inf).softmax(-1).masked_fill(hidden, 0.0)
    da, db = torch.autograd.grad(((f @ v) * g).sum(), (a, b))
    return da, db


def _heads(x: Tensor, count: int) -> Tensor:
    """Each head of keys repeated for its group of query heads."""
    if x.ndim < 3 or x.shape[-3] in (1, count) or count == 1:
        return x
    return x.repeat_interleave(count // x.shape[-3], dim=-3)


def softmax_rows(queries: Tensor, keys: Tensor) -> Tensor:
    """softmax(queries keysᵀ), a pair (it, 1) of features that makes the chained gradient exact."""
    return (queries.double() @ keys.double().mT).softmax(-1)

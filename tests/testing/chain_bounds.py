"""Error bounds of chains, adapter layers and attention adapters, from the magnitudes of what they sum."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from testing.tolerance import UNIT, factor_dtype, gamma

EXP_UNITS = 4.0  # of the exponential: its polynomial, its reduction, its scaling, one more


def within(found: Tensor, exact: Tensor, bound: Tensor) -> bool:
    """Whether every entry is."""
    return bool(((found.double() - exact).abs() <= bound).all())


def rounded(exact: Tensor, error: Tensor, dtype: torch.dtype) -> Tensor:
    """A sum that is off by `error`, rounded once to a dtype."""
    return error + UNIT[dtype] * (exact.abs() + error) + torch.finfo(dtype).smallest_normal


def chain(matrices: Sequence[Tensor]) -> Tensor:
    """Of the product of a chain in any order: each product adds gamma(k + 2) of the product of the magnitudes."""
    dtype, work = matrices[0].dtype, factor_dtype(matrices[0].dtype)
    magnitude = reduce(torch.matmul, [m.double().abs() for m in matrices])
    exact = reduce(torch.matmul, [m.double() for m in matrices])
    share = sum(gamma(m.shape[-1] + 2, work) for m in matrices[:-1])
    return rounded(exact, share * magnitude, dtype)


def layer(x: Tensor, w: Tensor | None, factors: Sequence[Tensor], scale: float, exact: Tensor) -> Tensor:
    """Of x wᵀ + scale x factors[0] factors[1] ... + bias; the two sums meet in one addition. Without w, of the rest."""
    work = factor_dtype(x.dtype)
    full = 0.0 if w is None else gamma(x.shape[-1] + 2, work) * (x.double().abs() @ w.double().abs().mT)
    magnitude = reduce(torch.matmul, [m.double().abs() for m in (x, *factors)])
    low = scale * sum(gamma(m.shape[-2] + 2, work) for m in factors) * magnitude
    return rounded(exact, full + low + 2 * UNIT[work] * (exact.abs() + scale * magnitude), x.dtype)


def attention(
    tensors: dict[str, Tensor], scale: float, hidden: Tensor, found: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Of da and db for one head. Scores are off by their sums; a weight by that, its exponential and the row's sum; p
    by three times what its weight is off (itself, rho, the row) and by dP; the sums over keys and queries follow."""
    work = factor_dtype(tensors["queries"].dtype)
    q, k, v, g, a, b, w = (tensors[n].double().abs() for n in ("queries", "keys", "values", "dout", "a", "b", "weight"))
    keys = k + k.mean(-2, keepdim=True)  # centered
    map_ = w + scale * b @ a
    depth = gamma(q.shape[-1] + 2, work) + gamma(a.shape[-2] + 2, work) + gamma(k.shape[-1] + 2, work) + UNIT[work]
    scores = (
        tensors["queries"].double()
        @ (tensors["weight"].double() + scale * tensors["b"].double() @ tensors["a"].double())
    ) @ tensors["keys"].double().mT
    f = scores.masked_fill(hidden, -torch.inf).softmax(-1).nan_to_num(0.0)
    off = 2 * (depth * (q @ map_ @ keys.mT)).masked_fill(hidden, 0.0).amax(-1, keepdim=True)
    off = off + gamma(k.shape[-2] + 2, work) + EXP_UNITS * UNIT[work]
    dp = g @ v.mT
    size = f * (dp + (f * dp).sum(-1, keepdim=True))
    error = 3 * off * size + gamma(v.shape[-1] + 2, work) * size
    total = error + gamma(k.shape[-2] + 2, work) * size
    more = gamma(q.shape[-1] + a.shape[-1] + a.shape[-2] + 4, work)
    bound = total + more * size
    da, db = scale * (q @ b).mT @ bound @ keys, scale * q.mT @ bound @ keys @ a.mT
    return tuple(rounded(x.double(), e, x.dtype) for x, e in zip(found, (da, db), strict=True))  # type: ignore[return-value]

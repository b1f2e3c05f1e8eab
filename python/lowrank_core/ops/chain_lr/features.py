"""Positive random features of the exponential of a product."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from lowrank_core.ops.arrays import (
    MAX_SEED,
    Array,
    check_array,
    check_int,
    check_same,
    dtype_name,
    empty,
    is_torch,
    plain_ints,
)
from lowrank_core.ops.declare import Op, declare
from lowrank_core.ops.normal import fill_normal
from lowrank_core.ops.operators import call

_OP = "positive_features"


def positive_features(q: Array, k: Array, *, count: int = 256, seed: int = 0) -> tuple[Array, Array]:
    """Features U, V > 0 with U Vᵀ about proportional to exp(q kᵀ) in every row: `features` of `attention_lora_grad`.

    exp(w·x - |x|²/2) for standard normal w has exp(q·k) as the mean of its product. The relative variance of an entry
    is (exp(|q + k|²) - 1) / count: of use where |q + k| is small. Rows of U are scaled to a largest exponent of 0, V as
    a whole, which a softmax does not notice and which nothing overflows after.

    Args:
      q: [..., L, d], any floating dtype. k: [..., M, d].
      count: features, >= 1.
      seed: 0 <= seed < 2**63, as for `rsvd`.

    Returns:
      (U [..., L, count], V [..., M, count]), float64 for float64 input, else float32.

    Raises:
      ValueError: an argument out of its range, another d. TypeError: not floating-point arrays.

    Numerics: tier D2 (within a stated bound; docs/numerics.md), for the exponential is the array library's; w is a
    function of the seed and its place. Not differentiable.
    Source: Choromanski et al., arXiv 2009.14794 (Performers), lemma 1, without orthogonal blocks.

    Example:
      >>> import numpy as np, lowrank_core as lc
      >>> q, k = np.full((5, 2), 0.1), np.full((7, 2), 0.2)
      >>> u, v = lc.positive_features(q, k, count=64)
      >>> u.shape, v.shape, bool((u > 0).all())
      ((5, 64), (7, 64), True)
    """
    count, seed = plain_ints(count, seed)
    u, v = call(_FEATURES, q, k, count=count, seed=seed)
    return u, v


def _check(q: Array, k: Array, *, count: int, seed: int) -> None:
    check_array(_OP, "q", q)
    check_array(_OP, "k", k)
    check_same(_OP, "k", k, q)
    check_int(_OP, "count", count, 1)
    check_int(_OP, "seed", seed, 0, MAX_SEED)
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"{_OP}: `k` must have {q.shape[-1]} columns as `q`, got shape {list(k.shape)}")


def _dtype(q: Array) -> str:
    return "float64" if dtype_name(q) == "float64" else "float32"


def _outputs(q: Array, k: Array, *, count: int, **_: Any) -> tuple[Array, Array]:
    u, v = (empty(q, (*x.shape[:-1], count), _dtype(q)) for x in (q, k))
    return u, v


def _features(q: Array, k: Array, *, count: int, seed: int) -> tuple[Array, Array]:
    _check(q, k, count=count, seed=seed)
    directions = np.empty((count, q.shape[-1]))
    fill_normal(directions, seed)
    left, right = (_exponents(x, directions, _dtype(q)) for x in (q, k))
    if is_torch(q):
        largest = left.amax(-1, keepdim=True) if count else left
        return (left - largest).exp(), (right - right.amax() if right.numel() else right).exp()
    return np.exp(left - left.max(-1, keepdims=True)), np.exp(right - right.max() if right.size else right)


def _exponents(x: Array, directions: np.ndarray, dtype: str) -> Array:
    """w·x - |x|²/2 for every direction w."""
    if is_torch(x):
        torch = sys.modules["torch"]
        work = x.to(getattr(torch, dtype))
        turned = torch.from_numpy(directions).to(work)
        return work @ turned.mT - work.square().sum(-1, keepdim=True) / 2
    work = x.astype(dtype, copy=False)
    return work @ directions.T.astype(dtype) - np.square(work).sum(-1, keepdims=True) / 2


_FEATURES = Op(
    "positive_features(Tensor q, Tensor k, *, int count, int seed) -> (Tensor, Tensor)",
    check=_check,
    outputs=_outputs,
    kernel=_features,
    fills=False,
)
declare("chain_lr", _FEATURES)

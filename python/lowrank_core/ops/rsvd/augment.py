"""The basis step of dynamical low-rank adapters over a list of layers: augment, step, truncate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lowrank_core import _core
from lowrank_core.ops.arrays import (
    Array,
    call_finite,
    check_array,
    check_int,
    check_same,
    compact,
    empty,
    factor_dtype,
    is_torch,
    plain_ints,
)
from lowrank_core.ops.operators import without_derivative

_OP = "augment_truncate"


class AugmentedBasis(NamedTuple):
    """One layer after the step, of rank q: `u` [m, q], `s` [q, q] diagonal and descending, `v` [n, q].

    What belongs to the old s moves to the new one by `left` [r, q] and `right` [r, q]: leftᵀ x right. `lost` is the
    norm that truncation cut off over the norm before it.
    """

    u: Array
    s: Array
    v: Array
    left: Array
    right: Array
    lost: float


def augment_truncate(
    u: Sequence[Array],
    s: Sequence[Array],
    v: Sequence[Array],
    gv: Sequence[Array],
    gu: Sequence[Array],
    *,
    lr: float,
    tol: float,
    max_rank: int,
    gs: Sequence[Array] | None = None,
    min_rank: int = 1,
    budget: int | None = None,
    weights: Sequence[float] | None = None,
) -> list[AugmentedBasis]:
    """GeoLoRA's basis step for a list of layers W = u s vᵀ in one call.

    Each basis is augmented by the part of its gradient that is orthogonal to it, K, L and S take one step of size
    `lr`, and the result is truncated by its singular values. With raw gradients the matrix before truncation is
    W - lr (u uᵀ G + G v vᵀ - u uᵀ G v vᵀ) to rounding, for any s, also zero.

    Args:
      u: one [m, r] for each layer, orthonormal columns, r <= min(m, n); float32, float64, bfloat16 or float16 (NumPy:
        float32, float64). Layers may differ in shape and dtype. Any strides.
      s: [r, r] each. v: [n, r] each, orthonormal columns.
      gv: [m, r] each: G v, what `usv_linear` leaves in u.grad, or a direction made of it.
      gu: [n, r] each: Gᵀ u, what it leaves in v.grad.
      lr: size of the step, for all.
      tol: >= 0, the largest norm that may be cut off, relative to the Frobenius norm of s after the step and before
        truncation. 0: nothing but zeros. Truncating twice may cut twice; call it once a step.
      max_rank: >= 1, of every layer. What is kept are the leading singular directions of all that was augmented, so no
        choice of columns enters.
      gs: [r, r] each, the direction of s; None: uᵀ (G v).
      min_rank: >= 1 and <= max_rank; below it nothing is cut (a layer of fewer directions keeps those it has).
      budget: largest sum of the ranks, >= min_rank for every layer; the smallest singular values of all layers go
        first. None: no limit.
      weights: one factor >= 0 for each layer's singular values where they compete, say its `scale`; None: 1.

    Returns:
      One AugmentedBasis for each layer: float64 for a layer of float64, else float32. Columns of u have their entry of
      largest magnitude positive.

    Raises:
      ValueError: an argument out of its range, shapes that do not fit, not finite. TypeError: not floating-point
      arrays.

    Numerics: tier D1 (same bits for any number of threads; docs/numerics.md); the 2r x 2r problem is float64. A plain
    function: its output shapes depend on the data. Not differentiable.
    Source: Schotthöfer et al., arXiv 2410.18720, algorithm 1. Deviations: no inverse of s; all r directions are added
    and the singular values choose, also where max_rank < 2 r; the tolerance is relative to the norm after the step.

    Example:
      >>> import numpy as np, lowrank_core as lc
      >>> u, s, v = np.eye(6, 2), np.diag([2.0, 1.0]), np.eye(5, 2)
      >>> still = [np.zeros((6, 2))], [np.zeros((5, 2))]  # no gradient: all that happens is truncation
      >>> [step] = lc.augment_truncate([u], [s], [v], *still, lr=0.1, tol=0.5, max_rank=4)
      >>> step.u.shape, round(step.lost, 3)
      ((6, 1), 0.447)
    """
    max_rank, min_rank, budget = plain_ints(max_rank, min_rank, budget)
    lists = {"u": u, "s": s, "v": v, "gv": gv, "gu": gu} | ({} if gs is None else {"gs": gs})
    layers = _layers(lists)
    for i, layer in enumerate(layers):
        _check(i, layer)
    factors = [1.0] * len(layers) if weights is None else [float(x) for x in weights]
    _check_rule(len(layers), lr, tol, max_rank, min_rank, budget, factors)
    named = {f"{name}[{i}]": array for i, layer in enumerate(layers) for name, array in layer.items()}

    def compute() -> tuple[Any, ...]:
        out = [_outputs(layer) for layer in layers]
        ranks = call_finite(
            _OP,
            _core.augment_truncate,
            out,
            [list(layer.values()) for layer in layers],
            arrays=named,
            lr=float(lr),
            tol=float(tol),
            min_rank=min_rank,
            max_rank=max_rank,
            budget=budget,
            weights=factors,
        )
        return tuple(x for arrays, found in zip(out, ranks, strict=True) for x in _result(arrays, *found))

    flat, size = without_derivative(_OP, list(named.values()), compute), len(AugmentedBasis._fields)
    return [AugmentedBasis(*flat[i : i + size]) for i in range(0, len(flat), size)]


def _layers(lists: dict[str, Sequence[Array]]) -> list[dict[str, Array]]:
    for name, items in lists.items():
        if isinstance(items, np.ndarray) or is_torch(items):
            raise TypeError(f"{_OP}: `{name}` must be a list of arrays, one for each layer, got one array")
    lengths = [len(items) for items in lists.values()]
    if len(set(lengths)) > 1:
        raise ValueError(f"{_OP}: {', '.join(lists)} must have the same length, got {lengths}")
    return [dict(zip(lists, items, strict=True)) for items in zip(*lists.values(), strict=True)]


def _check(index: int, layer: dict[str, Array]) -> None:
    u, v = layer["u"], layer["v"]
    for name, array in layer.items():
        check_array(_OP, f"{name}[{index}]", array)
        check_same(_OP, f"{name}[{index}]", array, u)
    (m, r), n = u.shape[-2:], v.shape[-2]
    shapes = {"u": (m, r), "s": (r, r), "v": (n, r), "gv": (m, r), "gu": (n, r), "gs": (r, r)}
    for name, array in layer.items():
        if tuple(array.shape) != shapes[name]:
            raise ValueError(
                f"{_OP}: `{name}[{index}]` must be {list(shapes[name])} for `u` of shape {list(u.shape)} and `v` of "
                f"shape {list(v.shape)}, got shape {list(array.shape)}"
            )
    if r > min(m, n):
        raise ValueError(f"{_OP}: `u[{index}]` must have at most min(m, n) = {min(m, n)} columns, got {r}")


def _check_rule(
    count: int, lr: float, tol: float, max_rank: int, min_rank: int, budget: int | None, weights: list[float]
) -> None:
    if not math.isfinite(lr):
        raise ValueError(f"{_OP}: `lr` must be finite, got {lr}")
    if not 0.0 <= tol < math.inf:
        raise ValueError(f"{_OP}: `tol` must be >= 0 and finite, got {tol}")
    check_int(_OP, "max_rank", max_rank, 1)
    check_int(_OP, "min_rank", min_rank, 1, max_rank, hint="; it may not exceed `max_rank`")
    if budget is not None:
        check_int(_OP, "budget", budget, min_rank * count, hint=f"; {count} layers keep `min_rank` each")
    if len(weights) != count:
        raise ValueError(f"{_OP}: `weights` must hold one number for each of {count} layers, got {len(weights)}")
    if not all(0.0 <= x < math.inf for x in weights):
        raise ValueError(f"{_OP}: `weights` must be >= 0 and finite, got {weights}")


def _outputs(layer: dict[str, Array]) -> list[Array]:
    """u, s, v, left and right of the largest rank that there can be."""
    u = layer["u"]
    (m, r), n, dtype = u.shape, layer["v"].shape[0], factor_dtype(u)
    width = min(2 * r, m, n)
    return [empty(u, shape, dtype) for shape in ((m, width), (width, width), (n, width), (r, width), (r, width))]


def _result(arrays: list[Array], rank: int, lost: float) -> AugmentedBasis:
    u, s, v, left, right = arrays
    parts = [compact(x) for x in (u[:, :rank], s[:rank, :rank], v[:, :rank], left[:, :rank], right[:, :rank])]
    return AugmentedBasis(parts[0], parts[1], parts[2], parts[3], parts[4], float(lost))

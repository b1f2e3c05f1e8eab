"""Randomized SVD at fixed rank: the factors, torch's spelling of them, and the basis alone."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from lowrank_core import _core
from lowrank_core.ops.arrays import (
    MAX_SEED,
    Array,
    call_finite,
    check_array,
    check_int,
    check_same,
    empty,
    factor_dtype,
    plain_ints,
    resolve_precision,
    transpose,
)
from lowrank_core.ops.declare import Op, declare
from lowrank_core.ops.operators import call


class RSVD(NamedTuple):
    """Leading singular triplets: `u` [..., m, r], `s` [..., r] descending, `vh` [..., r, n]."""

    u: Array
    s: Array
    vh: Array


def rsvd(
    a: Array,
    rank: int,
    *,
    oversample: int = 10,
    niter: int = 2,
    basis: Array | None = None,
    seed: int = 0,
    precision: str | None = None,
) -> RSVD:
    """Truncated singular value decomposition by random projection.

    Args:
      a: [..., m, n], float32, float64, bfloat16 or float16 (NumPy: float32, float64), finite. Any strides.
      rank: r, 0 <= r <= min(m, n).
      oversample: p >= 0, columns drawn beyond `rank` (at most min(m, n) in all).
      niter: q >= 0 (>= 1 with `basis`), power iterations with aᵀ and a, each half of one re-orthonormalized. Where `a`
        is large for its rank (m n >= 256 (rank + oversample)²) the last two products are a block Krylov step instead,
        which is faster and more exact.
      basis: [..., m, k], k >= 1, a guess of the column space (say, the last refresh's). It replaces the sketch
        and of the first iteration, and need neither be orthonormal nor of full rank; `oversample` fresh random columns
        stand beside it, without which a direction orthogonal to it could never enter. It gets no gradient: the
        exact factors do not depend on it.
      seed: 0 <= seed < 2**63. Every matrix of a batch sees the same sketch, so a batch equals its members.
      precision: how float32 products are evaluated. "highest" and "high": in float32. "medium": those that only look
        for directions may multiply bfloat16-rounded operands with float32 accumulation, where the CPU does that faster;
        those that decide the answer stay float32. None: torch's setting where torch is loaded, else "highest". float64
        input is always float64.

    Returns:
      RSVD(u [..., m, r], s [..., r], vh [..., r, n]), float64 for float64 input, else float32. `s` descends, the
      entry of largest magnitude in each column of `u` is positive (the first on ties). u and vh are orthonormal even
      where `a` has a lower rank or is zero.

    Raises:
      ValueError: an argument out of its range, or `a` not finite. TypeError: not a floating-point array.

    Numerics: tier D1 (same bits for any thread count on one instruction-set level). Differentiable twice, in reverse
    mode, where the singular values are distinct and s[r-1] exceeds the first value cut off.
    Source: Halko, Martinsson, Tropp 2011, algorithms 4.4 and 5.1, with a sparse sketch of the rows (8 entries in each);
    Musco, Musco 2015, algorithm 2 with two blocks, for the last step; warm start as in COAP (arXiv 2412.00071,
    eq. 6) plus fresh columns. docs/adr/0007-randomized-svd.md says why.

    Example:
      >>> import numpy as np, lowrank_core as lc
      >>> a = np.outer([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0])  # [4, 3], of rank 1
      >>> u, s, vh = lc.rsvd(a, rank=1)
      >>> u.shape, s.shape, vh.shape
      ((4, 1), (1,), (1, 3))
      >>> assert np.allclose(u * s @ vh, a)
    """
    rank, oversample, niter, seed = plain_ints(rank, oversample, niter, seed)
    options = {"oversample": oversample, "niter": niter, "seed": seed, "precision": precision}
    return RSVD(*call(_RSVD, a, rank, basis, **options))


def svd_lowrank(a: Array, q: int = 6, niter: int = 2, *, seed: int = 0) -> tuple[Array, Array, Array]:
    """`rsvd` under torch's names: `q` is the width of the sketch and of the result, and V is returned, not Vh.

    Args:
      a: [..., m, n], as for `rsvd`.
      q: 0 <= q <= min(m, n); nothing is oversampled beyond it.
      niter: iterations, >= 0, as of `rsvd`.
      seed: 0 <= seed < 2**63; the global generator of torch is never touched.

    Returns:
      (u [..., m, q], s [..., q], v [..., n, q]); a ≈ u diag(s) vᵀ.

    Raises, numerics, source: as `rsvd`.

    Example:
      >>> import numpy as np, lowrank_core as lc
      >>> a = np.outer([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0])  # [4, 3], of rank 1
      >>> u, s, v = lc.svd_lowrank(a, q=2)
      >>> assert np.allclose(u * s @ v.T, a)
    """
    q, niter, seed = plain_ints(q, niter, seed)
    u, s, v = call(_SVD_LOWRANK, a, q, niter, seed=seed)
    return u, s, v


def range_finder(
    a: Array,
    rank: int,
    *,
    oversample: int = 10,
    niter: int = 2,
    basis: Array | None = None,
    seed: int = 0,
    precision: str | None = None,
) -> Array:
    """The `u` of `rsvd` alone: an orthonormal basis of the dominant column space, strongest direction first.

    Args: as `rsvd`.

    Returns:
      [..., m, r], float64 for float64 input, else float32.

    Raises, numerics, source: as `rsvd`; not differentiable.

    Example:
      >>> import numpy as np, lowrank_core as lc
      >>> a = np.outer([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0])  # [4, 3], of rank 1
      >>> basis = lc.range_finder(a, rank=1)
      >>> assert np.allclose(basis @ (basis.T @ a), a)
      >>> basis = lc.range_finder(1.1 * a, rank=1, basis=basis, niter=1)  # a warm start
    """
    rank, oversample, niter, seed = plain_ints(rank, oversample, niter, seed)
    options = {"oversample": oversample, "niter": niter, "seed": seed, "precision": precision}
    return call(RANGE_FINDER, a, rank, basis, **options)


# ---- contract ------------------------------------------------------------------------------------------------------


def _check(
    op: str,
    a: Array,
    rank: int,
    basis: Array | None,
    *,
    oversample: int,
    niter: int,
    seed: int,
    precision: str | None,
) -> None:
    check_array(op, "a", a)
    if precision is not None:
        resolve_precision(op, precision)
    m, n = a.shape[-2:]
    check_int(op, "q" if op == "svd_lowrank" else "rank", rank, 0, min(m, n), hint=f" for shape [{m}, {n}]")
    check_int(op, "oversample", oversample, 0)
    check_int(op, "niter", niter, 0)
    check_int(op, "seed", seed, 0, MAX_SEED)
    if basis is None:
        return
    check_array(op, "basis", basis)
    check_same(op, "basis", basis, a)
    if tuple(basis.shape[:-1]) != tuple(a.shape[:-1]) or basis.shape[-1] < 1:
        raise ValueError(f"{op}: `basis` must be {[*a.shape[:-1], 'k']} with k >= 1, got shape {list(basis.shape)}")
    if niter < 1:
        raise ValueError(f"{op}: `niter` must be >= 1 with `basis`, got 0; the basis alone has not seen the matrix")


def _check_svd_lowrank(a: Array, q: int, niter: int, *, seed: int) -> None:
    _check("svd_lowrank", a, q, None, oversample=0, niter=niter, seed=seed, precision=None)


# ---- allocation ----------------------------------------------------------------------------------------------------


def triplet(like: Array, batch: tuple[int, ...], m: int, n: int, rank: int) -> tuple[Array, Array, Array]:
    """Uninitialised (u, s, vh) beside `like`."""
    dtype = factor_dtype(like)
    shapes = ((*batch, m, rank), (*batch, rank), (*batch, rank, n))
    u, s, vh = (empty(like, shape, dtype) for shape in shapes)
    return u, s, vh


def _triplet(a: Array, rank: int, *_: Any, **__: Any) -> tuple[Array, Array, Array]:
    m, n = a.shape[-2:]
    return triplet(a, tuple(a.shape[:-2]), m, n, rank)


def _triplet_of_v(a: Array, q: int, *_: Any, **__: Any) -> tuple[Array, Array, Array]:
    m, n = a.shape[-2:]
    u, s, v = (empty(a, (*a.shape[:-2], *tail), factor_dtype(a)) for tail in ((m, q), (q,), (n, q)))
    return u, s, v


def _basis(a: Array, rank: int, *_: Any, **__: Any) -> Array:
    return empty(a, (*a.shape[:-1], rank), factor_dtype(a))


# ---- computation ---------------------------------------------------------------------------------------------------


def _rsvd(
    out: tuple[Array, ...], a: Array, rank: int, basis: Array | None, *, precision: str | None, **options: Any
) -> None:
    options |= {"basis": basis, "precision": resolve_precision("rsvd", precision)}
    call_finite("rsvd", _core.rsvd, *out, a, arrays={"a": a, "basis": basis}, **options)


def rsvd_unrecorded(a: Array, rank: int, basis: Array | None, **options: Any) -> tuple[Array, ...]:
    """`rsvd` without its checks and without torch's dispatcher: (u, s, vh)."""
    out = _triplet(a, rank, basis, **options)
    _rsvd(out, a, rank, basis, precision=None, **options)
    return out


def _svd_lowrank(out: tuple[Array, ...], a: Array, q: int, niter: int, *, seed: int) -> None:
    u, s, v = out
    options = {"oversample": 0, "niter": niter, "seed": seed, "precision": resolve_precision("svd_lowrank", None)}
    call_finite("svd_lowrank", _core.rsvd, u, s, transpose(v), a, arrays={"a": a}, **options)


def _range_finder(
    out: Array, a: Array, rank: int, basis: Array | None, *, seed: int, precision: str | None, **options: Any
) -> None:
    options |= {"basis": [basis], "seed": [seed], "precision": resolve_precision("range_finder", precision)}
    call_finite("range_finder", _core.range_finder, [out], [a], arrays={"a": a, "basis": basis}, **options)


# torch's autograd takes no keyword-only tensors, so the operators have `basis` third.
_SETTINGS = "Tensor? basis=None, *, int oversample=10, int niter=2, int seed=0, str? precision=None"

_RSVD = Op(
    f"rsvd(Tensor a, int rank, {_SETTINGS}) -> (Tensor, Tensor, Tensor)",
    check=partial(_check, "rsvd"),
    outputs=_triplet,
    kernel=_rsvd,
    leading=("a", "basis"),
)
_SVD_LOWRANK = Op(
    "svd_lowrank(Tensor a, int q=6, int niter=2, *, int seed=0) -> (Tensor, Tensor, Tensor)",
    check=_check_svd_lowrank,
    outputs=_triplet_of_v,
    kernel=_svd_lowrank,
    leading=("a",),
)
RANGE_FINDER = Op(
    f"range_finder(Tensor a, int rank, {_SETTINGS}) -> Tensor",
    check=partial(_check, "range_finder"),
    outputs=_basis,
    kernel=_range_finder,
    leading=("a", "basis"),
)
declare("rsvd", _RSVD, _SVD_LOWRANK, RANGE_FINDER)

"""Around the randomized SVD: rank found by energy, the SVD of a product, orthonormalization."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from lowrank_core import _core
from lowrank_core.ops.arrays import (
    MAX_SEED,
    Array,
    call_finite,
    check_array,
    check_int,
    check_same,
    compact,
    dtype_name,
    empty,
    factor_dtype,
    plain_int,
    plain_ints,
)
from lowrank_core.ops.declare import Op, declare
from lowrank_core.ops.operators import call, without_derivative
from lowrank_core.ops.rsvd.fixed_rank import RSVD, triplet

# Below these relative errors the energy left is a difference of equal numbers (docs/numerics.md).
RESOLUTION = {"float32": 2e-3, "float64": 1e-7}
METHODS = ("auto", "cholqr2", "householder", "newton_schulz")


class QB(NamedTuple):
    """`q` [m, k] orthonormal, `b` [k, n] with orthogonal rows, longest first; `captured` share of ‖a‖_F² in [0, 1]."""

    q: Array
    b: Array
    captured: float


def qb(
    a: Array,
    *,
    energy: float | None = None,
    tol: float | None = None,
    max_rank: int | None = None,
    block: int = 16,
    niter: int = 1,
    seed: int = 0,
) -> QB:
    """Smallest q b that captures a given share of `a`, the rank found while it grows.

    Args:
      a: [m, n], one matrix, as for `rsvd`.
      energy: share of ‖a‖_F² to capture, in (0, 1].
      tol: instead, the largest relative error ‖a - q b‖_F / ‖a‖_F, in [0, 1): energy = 1 - tol².
      max_rank: stop there at the latest; None: min(m, n).
      block: directions added at a time, >= 1.
      niter: power iterations for each block, >= 0.
      seed: 0 <= seed < 2**63.

    Returns:
      QB(q [m, k], b [k, n], captured); k is the smallest number of directions of the subspace found that reaches
      the target, or what `max_rank` allows. A zero matrix gives k = 0 and captured = 1.

    Raises:
      ValueError: neither or both of `energy` and `tol`, an argument out of its range, `a` not finite.
      TypeError: not a floating-point array.

    Warns:
      RuntimeWarning: an error below 2e-3 in float32, or 1e-7 in float64, was asked for: rounding, maybe.

    Numerics: tier D1 (same bits for any number of threads; docs/numerics.md); the energy left is followed in float64. A
    plain function: its output shape depends on the data. Not differentiable.
    Source: Yu, Gu, Li 2018, algorithm 2 (randQB_EI); the final rotation by the SVD of b is ours.

    Example:
      >>> import numpy as np, lowrank_core as lc
      >>> q, b, captured = lc.qb(np.diag([3.0, 1.0, 0.1]), energy=0.99)
      >>> q.shape, round(captured, 3)
      ((3, 2), 0.999)
    """
    max_rank, block, niter, seed = plain_ints(max_rank, block, niter, seed)
    target = GrowthTarget.checked("qb", energy, tol, block, niter)
    cap = check_growth(a, max_rank, seed)
    target.warn_of_resolution("qb", {factor_dtype(a)})
    return QB(*without_derivative("qb", [a], lambda: grow("qb", {"a": a}, [cap], [seed], target)[0]))


def factored_svd(b: Array, a: Array, *, rank: int | None = None) -> RSVD:
    """Singular value decomposition of the product `b @ a`, which is not formed where it is larger than its factors.

    Args:
      b: [..., m, k], as `a` of `rsvd`.
      a: [..., k, n], same dtype, device and leading dimensions.
      rank: r, 0 <= r <= min(m, k, n); None: min(m, k, n).

    Returns:
      RSVD(u [..., m, r], s [..., r], vh [..., r, n]) with the dtypes and signs of `rsvd`.

    Raises:
      ValueError: shapes that do not chain, `rank` out of its range, not finite. TypeError: not floating-point arrays.

    Numerics: tier D1. Differentiable twice, in reverse mode, where the singular values are distinct.
    Source: QR of b, then the SVD of the small factor; the standard product SVD (Golub, Van Loan, 4th ed., 8.6.3).

    Example:
      >>> import numpy as np, lowrank_core as lc
      >>> b, a = np.eye(5, 2), np.array([[3.0, 0.0, 4.0], [0.0, 1.0, 0.0]])
      >>> u, s, vh = lc.factored_svd(b, a)
      >>> s.round(6)
      array([5., 1.])
      >>> assert np.allclose(u * s @ vh, b @ a)
    """
    rank = plain_int(rank)
    return RSVD(*call(_FACTORED_SVD, b, a, rank=rank))


def orthonormalize(y: Array, *, method: str = "auto") -> Array:
    """Orthonormal basis of the columns of a tall matrix.

    Args:
      y: [..., m, n], m >= n, as `a` of `rsvd`.
      method: "cholqr2" (Cholesky QR twice, float64 Gram matrix), "householder", "newton_schulz" (the polar factor
        y (yᵀy)^(-1/2), the closest orthonormal matrix), or "auto": cholqr2, and householder where that breaks down.

    Returns:
      [..., m, n] with orthonormal columns, float64 for float64 input, else float32. Where `y` has dependent columns,
      "auto" and "householder" fill the missing directions with arbitrary orthogonal ones.

    Raises:
      ValueError: m < n, an unknown method, or `y` not finite. TypeError: not a floating-point array.
      RuntimeError: "cholqr2" or "newton_schulz" met columns that are dependent to working precision; for the latter,
        so is a column that is shorter than the rounding of the longest.

    Numerics: tier D1; |qᵀq - 1| at most 5e-6 in float32. Not differentiable.
    Source: Yamamoto et al. 2015 (CholeskyQR2); Björck, Bowie 1971, eq. 3 (Newton-Schulz).

    Example:
      >>> import numpy as np, lowrank_core as lc
      >>> q = lc.orthonormalize(np.array([[3.0, 1.0], [4.0, 1.0], [0.0, 1.0]]))
      >>> assert np.allclose(q.T @ q, np.eye(2))
    """
    return call(_ORTHONORMALIZE, y, method=method)


# ---- contract and allocation ---------------------------------------------------------------------------------------


class GrowthTarget(NamedTuple):
    """What the growing factors of one or of many matrices have in common."""

    energy: float
    error: float
    block: int
    niter: int

    @classmethod
    def checked(cls, op: str, energy: float | None, tol: float | None, block: int, niter: int) -> GrowthTarget:
        """Of the arguments of `op`."""
        check_int(op, "block", block, 1)
        check_int(op, "niter", niter, 0)
        if (energy is None) == (tol is None):
            raise ValueError(f"{op}: exactly one of `energy` and `tol` must be given, got {energy} and {tol}")
        if energy is not None:
            if not 0.0 < energy <= 1.0:
                raise ValueError(f"{op}: `energy` must be in (0, 1], got {energy}")
            return cls(float(energy), math.sqrt(1.0 - energy), block, niter)
        if tol is None or not 0.0 <= tol < 1.0:
            raise ValueError(f"{op}: `tol` must be in [0, 1), got {tol}")
        return cls(1.0 - float(tol) ** 2, tol, block, niter)

    def warn_of_resolution(self, op: str, dtypes: set[str]) -> None:
        """For the caller of the public function that calls this, where factors of one of `dtypes` cannot tell."""
        for dtype in sorted(dtypes):
            finest = RESOLUTION[dtype]
            all_of_it = self.error == 0.0 and dtype == "float64"  # which has all there is to have
            if self.error < finest and not all_of_it:
                warnings.warn(
                    f"{op}: a relative error of {self.error:.1e} is below the resolution of {dtype}, {finest:.0e}; "
                    "the rank found may be too small by a few",
                    RuntimeWarning,
                    stacklevel=3,
                )


def check_growth(a: Array, max_rank: int | None, seed: int) -> int:
    """The largest rank that `qb` may find in `a`."""
    check_array("qb", "a", a)
    if a.ndim != 2:
        raise ValueError(f"qb: `a` must be one matrix, got shape {list(a.shape)}; loop over the batch")
    m, n = a.shape
    cap = min(m, n) if max_rank is None else max_rank
    check_int("qb", "max_rank", cap, 0, min(m, n), hint=f" for shape [{m}, {n}]")
    check_int("qb", "seed", seed, 0, MAX_SEED)
    return int(cap)


def _check_product(b: Array, a: Array, *, rank: int | None) -> None:
    op = "factored_svd"
    check_array(op, "b", b)
    check_array(op, "a", a)
    check_same(op, "a", a, b)
    if dtype_name(a) != dtype_name(b):
        raise TypeError(f"{op}: `a` must be {dtype_name(b)} as `b`, got {dtype_name(a)}")
    if b.shape[-1] != a.shape[-2] or tuple(b.shape[:-2]) != tuple(a.shape[:-2]):
        raise ValueError(
            f"{op}: `b` [..., m, k] and `a` [..., k, n] must chain, got {list(b.shape)} and {list(a.shape)}"
        )
    shape = [*b.shape[-2:], a.shape[-1]]
    if rank is not None:
        check_int(op, "rank", rank, 0, min(shape), hint=f" for m, k, n = {shape}")


def _triplet(b: Array, a: Array, *, rank: int | None) -> tuple[Array, Array, Array]:
    m, n = b.shape[-2], a.shape[-1]
    full = min(m, b.shape[-1], n)
    return triplet(b, tuple(b.shape[:-2]), m, n, full if rank is None else rank)


def _check_tall(y: Array, *, method: str) -> None:
    check_array("orthonormalize", "y", y)
    if method not in METHODS:
        raise ValueError(f"orthonormalize: `method` must be one of {', '.join(METHODS)}, got {method!r}")
    if y.shape[-2] < y.shape[-1]:
        raise ValueError(
            f"orthonormalize: `y` must have at least as many rows as columns, got shape {list(y.shape)}; "
            "pass its transpose for a basis of the rows"
        )


def _like(y: Array, **_: Any) -> Array:
    return empty(y, tuple(y.shape), factor_dtype(y))


# ---- computation ---------------------------------------------------------------------------------------------------


def grow(
    op: str, arrays: dict[str, Array], caps: Sequence[int], seeds: Sequence[int], target: GrowthTarget
) -> list[tuple[Array, Array, float]]:
    """`q`, `b` and `captured` of each of `arrays`, which `op` names by their keys."""
    given = list(arrays.values())
    q = [empty(a, (a.shape[0], cap), factor_dtype(a)) for a, cap in zip(given, caps, strict=True)]
    b = [empty(a, (cap, a.shape[1]), factor_dtype(a)) for a, cap in zip(given, caps, strict=True)]
    options: dict[str, Any] = {"energy": target.energy, "block": target.block, "niter": target.niter, "seed": seeds}
    ranks = call_finite(op, _core.qb, q, b, given, arrays=arrays, **options)
    found = []
    for rank, captured in ranks:
        wide, tall = q.pop(0), b.pop(0)  # so that those of the largest rank go one by one
        found.append((compact(wide[:, :rank]), compact(tall[:rank]), captured))
    return found


def _factored_svd(out: tuple[Array, ...], b: Array, a: Array, **_: Any) -> None:
    call_finite("factored_svd", _core.factored_svd, *out, b, a, arrays={"b": b, "a": a})


def _orthonormalize(out: Array, y: Array, *, method: str) -> None:
    if not call_finite("orthonormalize", _core.orthonormalize, out, y, arrays={"y": y}, method=method):
        raise RuntimeError(
            f"orthonormalize: `y` must have linearly independent columns for method={method!r}; "
            "use method='auto', which fills the missing directions"
        )


_FACTORED_SVD = Op(
    "factored_svd(Tensor b, Tensor a, *, int? rank=None) -> (Tensor, Tensor, Tensor)",
    check=_check_product,
    outputs=_triplet,
    kernel=_factored_svd,
    leading=("b", "a"),
)
_ORTHONORMALIZE = Op(
    "orthonormalize(Tensor y, *, str method='auto') -> Tensor",
    check=_check_tall,
    outputs=_like,
    kernel=_orthonormalize,
    leading=("y",),
)
declare("rsvd", _FACTORED_SVD, _ORTHONORMALIZE)

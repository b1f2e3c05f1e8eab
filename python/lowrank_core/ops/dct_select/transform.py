"""The orthonormal cosine transform of any length along any dimension."""

from __future__ import annotations

from functools import partial

from lowrank_core import _core
from lowrank_core.ops.arrays import Array, call_named, check_array, check_int, dtype_name, empty, is_torch, plain_int
from lowrank_core.ops.declare import Op, declare
from lowrank_core.ops.operators import call

LONGEST = 2**29 - 1  # up to which angles are exact


def dct(x: Array, *, dim: int = -1) -> Array:
    """Orthonormal DCT-II: `y_k = s_k sum_i x_i cos(pi k (2i + 1) / 2n)`, `s_0² = 1/n`, `s_k² = 2/n`.

    Args:
      x: [..., n, ...], at least one dimension, float32, float64, bfloat16 or float16 (NumPy: float32, float64). Any
        strides, any n below 2**29; a prime factor above 61 makes it about four times as long.
      dim: the dimension to transform, -x.ndim <= dim < x.ndim.

    Returns:
      An array like `x`, contiguous; coefficient k along `dim` has frequency k / 2n per sample. Computed in float32
      (float64 for float64), rounded once. Each line by itself: NaN and infinity stay within theirs.

    Raises:
      ValueError: `dim` out of range, no dimension, or too long. TypeError: not a floating-point array.

    Numerics: tier D1 (same bits for any number of threads; docs/numerics.md). Differentiable any number of times, in
    reverse and forward mode: the derivative of `dct` is `idct`.
    Source: Makhoul 1980, through a complex transform of half the length (Cooley, Tukey 1965; Bluestein 1970 for large
    prime factors); awkward short lengths by a product with the matrix.

    Example:
      >>> import numpy as np, lowrank_core as lc
      >>> lc.dct(np.array([1.0, 1.0, 1.0, 1.0])).round(6) + 0.0  # a constant has frequency 0 alone
      array([2., 0., 0., 0.])
    """
    dim = plain_int(dim)
    return call(_DCT, x, dim)


def idct(x: Array, *, dim: int = -1) -> Array:
    """The inverse of `dct`, which is its transpose: the orthonormal DCT-III.

    Args, returns, raises, numerics, source: as `dct`; the derivative of `idct` is `dct`.

    Example:
      >>> import numpy as np, lowrank_core as lc
      >>> x = np.array([[1.0, 2.0, 4.0], [3.0, 5.0, 6.0]])
      >>> assert np.allclose(lc.idct(lc.dct(x, dim=0), dim=0), x)
    """
    dim = plain_int(dim)
    return call(_IDCT, x, dim)


def coordinates_unrecorded(matrix: Array, basis: str, side: str) -> Array:
    """Coordinates of `matrix` [m, n] in the whole basis of `dct_select` called `basis`: Qᵀ G (left) or G Q (right), in
    its dtype. Unchecked."""
    dim, out = (0 if side == "left" else 1), empty(matrix, tuple(matrix.shape), dtype_name(matrix))
    _transform("dct_select", basis, out, matrix, dim)
    return out


def _check(op: str, x: Array, dim: int) -> None:
    check_array(op, "x", x, ndim=1)
    check_int(op, "dim", dim, -x.ndim, x.ndim - 1, hint=f" for shape {list(x.shape)}")
    if x.shape[dim] > LONGEST:
        raise ValueError(f"{op}: `x` must have at most {LONGEST} elements along `dim`, got {x.shape[dim]}")


def _last(x: Array, dim: int) -> Array:
    """A view with `dim` last."""
    if is_torch(x):
        return x.movedim(dim, -1)
    order = [i for i in range(x.ndim) if i != dim % x.ndim]
    return x.transpose(*order, dim % x.ndim)


def _like(x: Array, dim: int) -> Array:
    return empty(x, tuple(x.shape), dtype_name(x))


def _transform(op: str, basis: str, out: Array, x: Array, dim: int) -> None:
    call_named(op, _core.dct_transform, _last(out, dim), _last(x, dim), arrays={"x": x}, basis=basis)


_DCT, _IDCT = (
    Op(f"{name}(Tensor x, int dim=-1) -> Tensor", partial(_check, name), _like, partial(_transform, name, basis))
    for name, basis in (("dct", "dct2"), ("idct", "dct3"))
)
declare("dct_select", _DCT, _IDCT)

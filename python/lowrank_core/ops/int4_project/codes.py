"""Arrays as 4-bit codes: quantization and its way back."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from lowrank_core import _core
from lowrank_core.ops.arrays import (
    MAX_SEED,
    Array,
    call_finite,
    call_named,
    check_array,
    check_int,
    empty,
    is_torch,
    not_finite,
    plain_ints,
)
from lowrank_core.ops.declare import Op, declare
from lowrank_core.ops.device import on_device, on_host, stream_of
from lowrank_core.ops.int4_project.matrix import (
    SCHEMES,
    Int4Matrix,
    check_choice,
    check_codes,
    check_group_size,
    groups_of,
    has_offsets,
    with_size,
)
from lowrank_core.ops.operators import call

ROUNDINGS = ("nearest", "stochastic")
_LARGEST = np.float32(2**127)
Grids = tuple[Array, Array, Array]


def quantize_int4(
    x: Array,
    *,
    group_size: int = 128,
    dim: int = -1,
    scheme: str = "affine",
    rounding: str = "nearest",
    seed: int = 0,
) -> Int4Matrix:
    """Packs `x` into 4-bit codes, two a byte.

    Args:
      x: at least one dimension, float32, float64, bfloat16 or float16 (NumPy: float32, float64); finite,
        magnitudes and the range of every group at most 2**127. Any strides. Read as float32.
      group_size: consecutive elements along `dim` that share a scale: a multiple of 32, at most 256.
      dim: -ndim <= dim < ndim. 0 for a basis [m, r] is the layout that `int4_project` reads fastest.
      scheme: "affine": 16 even steps from the smallest to the largest element. "affine_zp": the same with an integer
        zero point, the range extended to zero. "symmetric": 15 even steps around zero. "nf4": 16 levels that are
        quantiles of a normal distribution, symmetric range.
      rounding: "nearest", ties to the upper code, or "stochastic": exact in the mean.
      seed: of the stochastic rounding, 0 <= seed < 2**63.

    Returns:
      Int4Matrix(packed, scales, offsets, shape, dim, group_size, scheme). Scales are rounded up and affine offsets down
      to bfloat16, and codes chosen against what is stored: no element is off by more than half its step (a whole step
      for "stochastic"). A group without range decodes to its constant, rounded to bfloat16 for "affine". At group_size
      128 it takes 0.531 bytes an element, 0.516 without offsets.

    Raises:
      ValueError: an argument out of its range, or `x` not finite or too large. TypeError: not a floating-point array.

    Numerics: tier D0 (same bits on every device and level; docs/numerics.md). Not differentiable.
    Source: Q-GaLore (arXiv 2407.08296), section 3; deviations: codes are packed; affine_zp extends the range to zero
    where the published zero point is clamped, which destroys groups of one sign; stochastic affine_zp widens the scale
    until no element is clipped. nf4: Dettmers et al. 2023 (arXiv 2305.14314), appendix E.

    Example:
      >>> import numpy as np, lowrank_core as lc
      >>> q = lc.quantize_int4(np.linspace(-1, 1, 1024).reshape(8, 128))
      >>> q.packed.shape, q.scales.shape
      ((8, 64), (8, 1))
    """
    group_size, dim, seed = plain_ints(group_size, dim, seed)
    settings = {"group_size": group_size, "dim": dim, "scheme": scheme, "rounding": rounding, "seed": seed}
    packed, scales, offsets = call(_QUANTIZE, x, **settings)
    kept = offsets if has_offsets(scheme) else None
    return Int4Matrix(packed, scales, kept, tuple(x.shape), dim % x.ndim, group_size, scheme)


def dequantize_int4(q: Int4Matrix, dtype: Any = None) -> Array:
    """The array that the codes of `q` stand for.

    Args:
      q: of `quantize_int4`.
      dtype: of the result, the library's own or a name: float32 (default), float64, bfloat16 or float16 (NumPy:
        float32, float64). Decoded in float32 and rounded once.

    Returns:
      The array, of q's shape, contiguous.

    Raises:
      ValueError: parts of `q` that do not fit together. TypeError: no Int4Matrix, or another dtype.

    Numerics: tier D0. Not differentiable.

    Example:
      >>> import numpy as np, lowrank_core as lc
      >>> x = np.linspace(-1, 1, 1024).reshape(8, 128)
      >>> q = lc.quantize_int4(x)
      >>> assert (np.abs(lc.dequantize_int4(q) - x) <= 0.5001 * q.scales).all()  # half a step
    """
    check_codes("dequantize_int4", q)
    wanted = _dtype(dtype, q.packed)
    settings = {"dim": q.dim, "group_size": q.group_size, "scheme": q.scheme}
    given = getattr(sys.modules["torch"], wanted) if is_torch(q.packed) else wanted
    return call(_DEQUANTIZE, q.packed, q.scales, q.offsets, q.shape, **settings, dtype=given)


def dequantize_list(codes: Sequence[Int4Matrix], out: Sequence[Array]) -> None:
    """`dequantize_int4` of a list of checked codes of one scheme and `dim` into `out`, without torch's dispatcher."""
    if codes:
        offsets = [q.offsets for q in codes if q.offsets is not None]
        _core.dequantize_int4_list(
            out, [q.packed for q in codes], [q.scales for q in codes], offsets,
            group_sizes=[q.group_size for q in codes], dim=codes[0].dim, scheme=codes[0].scheme,
            stream=stream_of(out[0]),
        )  # fmt: skip


# ---- the contract --------------------------------------------------------------------------------------------------


def _check_quantize(x: Array, *, group_size: int, dim: int, scheme: str, rounding: str, seed: int) -> None:
    op = "quantize_int4"
    check_array(op, "x", x, ndim=1)
    check_group_size(op, group_size)
    check_int(op, "dim", dim, -x.ndim, x.ndim - 1, f" for shape {list(x.shape)}")
    check_choice(op, "scheme", scheme, SCHEMES)
    check_choice(op, "rounding", rounding, ROUNDINGS)
    check_int(op, "seed", seed, 0, MAX_SEED)


def _check_dequantize(
    packed: Array,
    scales: Array,
    offsets: Array | None,
    shape: tuple[int, ...],
    *,
    dim: int,
    group_size: int,
    scheme: str,
    dtype: Any,
) -> None:
    check_codes("dequantize_int4", Int4Matrix(packed, scales, offsets, tuple(shape), dim, group_size, scheme))
    _dtype(dtype, packed)


def _dtype(dtype: Any, like: Array) -> str:
    """Its name; refuses what `like`'s library does not decode to."""
    torch_like = is_torch(like)
    allowed = ("float32", "float64", "bfloat16", "float16") if torch_like else ("float32", "float64")
    name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    if not torch_like and name not in allowed:
        try:
            name = np.dtype(dtype).name
        except TypeError:
            name = str(dtype)
    if name not in allowed:
        raise TypeError(f"dequantize_int4: `dtype` must be {' or '.join(allowed)}, got {dtype!r}")
    return name


# ---- the operators -------------------------------------------------------------------------------------------------


def _grids(x: Array, *, group_size: int, dim: int, scheme: str, **_: Any) -> Grids:
    shape, at = tuple(x.shape), dim % x.ndim
    groups = groups_of(shape[at], group_size)
    grid = "bfloat16" if is_torch(x) else "float32"
    packed = empty(x, with_size(shape, at, groups * group_size // 2), "uint8")
    scales = empty(x, with_size(shape, at, groups), grid)
    return packed, scales, empty(x, with_size(shape, at, groups if has_offsets(scheme) else 0), grid)


def _quantize(out: Grids, x: Array, *, dim: int, scheme: str, rounding: str, seed: int, **options: Any) -> None:
    options |= {"dim": dim % x.ndim, "scheme": scheme, "seed": seed if rounding == "stochastic" else None}
    packed, scales, offsets = out
    given = offsets if has_offsets(scheme) else None
    refused = None
    if on_device(x):
        refused = empty(x, (1,), "int32")
        refused[0] = 0
        options |= {"refused": refused, "stream": stream_of(x)}
    call_finite("quantize_int4", _core.quantize_int4, packed, scales, given, x, arrays={"x": x}, **options)
    if refused is not None and int(refused[0]):
        raise ValueError(_refusal(on_host(x), dim, options["group_size"]))


def _refusal(x: Any, dim: int, group_size: int) -> str:
    """Why an array has no codes, in the words of the host's kernel."""
    if not np.isfinite(x).all():
        return not_finite("quantize_int4", "x")
    lines = np.moveaxis(x, dim, -1).reshape(-1, x.shape[dim])
    for line in lines:
        for begin in range(0, len(line), group_size):
            low, high = (pick(line[begin : begin + group_size]) for pick in (np.min, np.max))
            with np.errstate(over="ignore"):
                ends = np.array([low, high], dtype=np.float32)
            if not (np.abs(ends) <= _LARGEST).all() or not ends[1] - ends[0] <= _LARGEST:
                return (
                    "quantize_int4: `x` must stay within 2**127 in magnitude and in the range of a group, got a group "
                    f"from {low:.9g} to {high:.9g}; divide it by a constant"
                )
    raise RuntimeError("quantize_int4: a group that has no codes must be found again")


def _decoded(
    packed: Array, scales: Array, offsets: Array | None, shape: tuple[int, ...], *, dtype: Any, **_: Any
) -> Any:
    return empty(packed, tuple(shape), _dtype(dtype, packed))


def _dequantize(
    out: Array,
    packed: Array,
    scales: Array,
    offsets: Array | None,
    shape: tuple[int, ...],
    *,
    dtype: Any,
    **settings: Any,
) -> None:
    named = {"q.packed": packed, "q.scales": scales, "q.offsets": offsets}
    kernel = _core.dequantize_int4
    call_named("dequantize_int4", kernel, out, packed, scales, offsets, arrays=named, stream=stream_of(out), **settings)


_QUANTIZE = Op(
    "quantize_int4(Tensor x, *, int group_size=128, int dim=-1, str scheme='affine', str rounding='nearest', "
    "int seed=0) -> (Tensor, Tensor, Tensor)",
    check=_check_quantize,
    outputs=_grids,
    kernel=_quantize,
)
_DEQUANTIZE = Op(
    "dequantize_int4(Tensor packed, Tensor scales, Tensor? offsets, SymInt[] shape, *, int dim, int group_size, "
    "str scheme, ScalarType? dtype=None) -> Tensor",
    check=_check_dequantize,
    outputs=_decoded,
    kernel=_dequantize,
)
declare("int4_project", _QUANTIZE, _DEQUANTIZE)

"""
Compiled kernels of lowrank_core. Arrays in, arrays out; the public functions are in lowrank_core.
"""

from __future__ import annotations

import collections.abc
import typing

import numpy.typing

__all__: list[str] = [
    "blockwise_decode",
    "blockwise_encode",
    "build_info",
    "dequantize_int4",
    "factored_svd",
    "fast_bfloat16",
    "gemm",
    "int4_project",
    "isa",
    "isa_levels",
    "num_threads",
    "orthonormalize",
    "philox_bits",
    "qb",
    "quantize_int4",
    "range_finder",
    "rsvd",
    "set_isa",
    "set_num_threads",
    "sketch",
]

def blockwise_decode(
    values: numpy.typing.ArrayLike, codes: numpy.typing.ArrayLike, scales: numpy.typing.ArrayLike, *, map: str
) -> None:
    """
    Decodes into `values`.
    """

def blockwise_encode(
    codes: numpy.typing.ArrayLike,
    scales: numpy.typing.ArrayLike,
    values: numpy.typing.ArrayLike,
    *,
    map: str,
    seed: typing.SupportsInt | typing.SupportsIndex | None = None,
    stream: typing.SupportsInt | typing.SupportsIndex = 3,
    step: typing.SupportsInt | typing.SupportsIndex = 0,
) -> None:
    """
    8-bit codes of float32 `values` in blocks of 256; with a seed rounded stochastically.
    """

def build_info() -> dict[str, typing.Any]:
    """
    Facts of this build: version, compiler, CUDA toolkit or None.
    """

def dequantize_int4(
    out: numpy.typing.ArrayLike,
    packed: numpy.typing.ArrayLike,
    scales: numpy.typing.ArrayLike,
    offsets: numpy.typing.ArrayLike | None,
    *,
    dim: typing.SupportsInt | typing.SupportsIndex,
    group_size: typing.SupportsInt | typing.SupportsIndex,
    scheme: str,
) -> None:
    """
    Decodes into `out`.
    """

def factored_svd(
    u: numpy.typing.ArrayLike,
    s: numpy.typing.ArrayLike,
    vh: numpy.typing.ArrayLike,
    b: numpy.typing.ArrayLike,
    a: numpy.typing.ArrayLike,
) -> None:
    """
    Leading singular triplets of the product b a into u, s, vh.
    """

def fast_bfloat16() -> bool:
    """
    Whether bfloat16 products are faster than float32 here, so that precision 'medium' uses them.
    """

def gemm(
    c: numpy.typing.ArrayLike,
    a: numpy.typing.ArrayLike,
    b: numpy.typing.ArrayLike,
    *,
    alpha: typing.SupportsFloat | typing.SupportsIndex = 1.0,
    beta: typing.SupportsFloat | typing.SupportsIndex = 0.0,
    precision: str = "highest",
) -> None:
    """
    c <- alpha a b + beta c for (batches of) matrices of any strides.
    """

def int4_project(
    out: numpy.typing.ArrayLike,
    packed: numpy.typing.ArrayLike,
    scales: numpy.typing.ArrayLike,
    offsets: numpy.typing.ArrayLike | None,
    x: numpy.typing.ArrayLike,
    *,
    rows: typing.SupportsInt | typing.SupportsIndex,
    cols: typing.SupportsInt | typing.SupportsIndex,
    dim: typing.SupportsInt | typing.SupportsIndex,
    group_size: typing.SupportsInt | typing.SupportsIndex,
    scheme: str,
    back: bool = False,
) -> None:
    """
    out <- Pᵀ x, or P x with `back`, for the packed matrix P [rows, cols].
    """

def isa() -> str:
    """
    The instruction-set level in use.
    """

def isa_levels() -> list[str]:
    """
    The levels that this machine and build have, lowest first.
    """

def num_threads() -> int:
    """
    Threads that the next kernel may use.
    """

def orthonormalize(q: numpy.typing.ArrayLike, y: numpy.typing.ArrayLike, *, method: str = "auto") -> bool:
    """
    Orthonormal basis of the columns of `y` into q; False where the method breaks down.
    """

def philox_bits(
    out: numpy.typing.ArrayLike,
    seed: typing.SupportsInt | typing.SupportsIndex,
    stream: typing.SupportsInt | typing.SupportsIndex,
    step: typing.SupportsInt | typing.SupportsIndex,
    first: typing.SupportsInt | typing.SupportsIndex = 0,
) -> None:
    """
    Fills `out` (int64) with the 32-bit values of elements first, first + 1, ...
    """

def qb(
    q: numpy.typing.ArrayLike,
    b: numpy.typing.ArrayLike,
    a: numpy.typing.ArrayLike,
    *,
    energy: typing.SupportsFloat | typing.SupportsIndex,
    block: typing.SupportsInt | typing.SupportsIndex = 16,
    niter: typing.SupportsInt | typing.SupportsIndex = 1,
    seed: typing.SupportsInt | typing.SupportsIndex = 0,
) -> tuple[int, float]:
    """
    Grows q b until it captures `energy`; returns (rank, captured).
    """

def quantize_int4(
    packed: numpy.typing.ArrayLike,
    scales: numpy.typing.ArrayLike,
    offsets: numpy.typing.ArrayLike | None,
    x: numpy.typing.ArrayLike,
    *,
    dim: typing.SupportsInt | typing.SupportsIndex,
    group_size: typing.SupportsInt | typing.SupportsIndex,
    scheme: str,
    seed: typing.SupportsInt | typing.SupportsIndex | None = None,
) -> None:
    """
    Codes of `x` into packed, scales and offsets; with a seed rounded stochastically.
    """

def range_finder(
    q: collections.abc.Sequence[numpy.typing.ArrayLike],
    a: collections.abc.Sequence[numpy.typing.ArrayLike],
    *,
    oversample: typing.SupportsInt | typing.SupportsIndex = 10,
    niter: typing.SupportsInt | typing.SupportsIndex = 2,
    basis: collections.abc.Sequence[numpy.typing.ArrayLike | None],
    seed: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    precision: str = "highest",
) -> None:
    """
    Leading left singular vectors of each array of the list `a` into its partner in q.
    """

def rsvd(
    u: numpy.typing.ArrayLike,
    s: numpy.typing.ArrayLike,
    vh: numpy.typing.ArrayLike,
    a: numpy.typing.ArrayLike,
    *,
    oversample: typing.SupportsInt | typing.SupportsIndex = 10,
    niter: typing.SupportsInt | typing.SupportsIndex = 2,
    basis: numpy.typing.ArrayLike | None = None,
    seed: typing.SupportsInt | typing.SupportsIndex = 0,
    precision: str = "highest",
) -> None:
    """
    Leading singular triplets of `a` into u, s, vh.
    """

def set_isa(level: str) -> None:
    """
    Lowers the level; ValueError for one that is not available.
    """

def set_num_threads(count: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    Sets it, for this thread; torch.set_num_threads does the same.
    """

def sketch(
    out: numpy.typing.ArrayLike,
    *,
    seed: typing.SupportsInt | typing.SupportsIndex = 0,
    step: typing.SupportsInt | typing.SupportsIndex = 0,
    stream: typing.SupportsInt | typing.SupportsIndex = 0,
) -> None:
    """
    Fills `out` with the random signs that a sketch of its shape has.
    """

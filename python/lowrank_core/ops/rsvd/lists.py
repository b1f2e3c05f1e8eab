"""The range finder over a list of matrices: the refresh of a whole model in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lowrank_core import _core
from lowrank_core.ops.arrays import Array, call_finite, plain_ints, resolve_precision
from lowrank_core.ops.operators import without_derivative
from lowrank_core.ops.rsvd.fixed_rank import RANGE_FINDER


def range_finder_list(
    arrays: Sequence[Array],
    ranks: Sequence[int],
    *,
    oversample: int = 10,
    niter: int = 2,
    bases: Sequence[Array | None] | None = None,
    seeds: Sequence[int] | None = None,
    precision: str | None = None,
) -> list[Array]:
    """`range_finder` of each array, bit for bit, in one call.

    Matrices of up to 2048 x 2048 entries run side by side, one thread each: their small factorizations, which threads
    cannot share well, then overlap.

    Args:
      arrays: each [..., m, n], as `a` of `range_finder`; shapes and dtypes may differ.
      ranks: one for each array.
      oversample, niter, precision: for all, as there.
      bases: one for each array, None where there is none; None for none at all.
      seeds: one for each array; None: 0 for all.

    Returns:
      One [..., m, r] for each array.

    Raises:
      ValueError: lists of different lengths, or what `range_finder` refuses.

    Numerics, source: as `range_finder`. A plain function, not differentiable.
    """
    bases = [None] * len(arrays) if bases is None else list(bases)
    seeds = [0] * len(arrays) if seeds is None else list(plain_ints(*seeds))
    ranks, (oversample, niter) = plain_ints(*ranks), plain_ints(oversample, niter)
    if not len(arrays) == len(ranks) == len(bases) == len(seeds):
        raise ValueError(
            "range_finder_list: `arrays`, `ranks`, `bases` and `seeds` must have the same length, "
            f"got {len(arrays)}, {len(ranks)}, {len(bases)} and {len(seeds)}"
        )
    out = [
        _output(i, a, rank, basis, oversample=oversample, niter=niter, seed=seed, precision=precision)
        for i, (a, rank, basis, seed) in enumerate(zip(arrays, ranks, bases, seeds, strict=True))
    ]
    named = {f"arrays[{i}]": a for i, a in enumerate(arrays)} | {f"bases[{i}]": b for i, b in enumerate(bases)}

    def compute() -> tuple[Array, ...]:
        call_finite(
            "range_finder_list",
            _core.range_finder,
            out,
            list(arrays),
            arrays=named,
            oversample=oversample,
            niter=niter,
            basis=bases,
            seed=seeds,
            precision=resolve_precision("range_finder_list", precision),
        )
        return tuple(out)

    return list(without_derivative("range_finder_list", list(named.values()), compute))


def _output(i: int, a: Array, rank: int, basis: Array | None, **options: Any) -> Array:
    """Checks member `i` and allocates its result; a refusal names it by its place."""
    try:
        return RANGE_FINDER.fake(a, rank, basis, **options)
    except (ValueError, TypeError) as error:
        text = str(error).replace("range_finder:", "range_finder_list:", 1)
        for argument, list_of in (("a", "arrays"), ("rank", "ranks"), ("basis", "bases"), ("seed", "seeds")):
            text = text.replace(f"`{argument}`", f"`{list_of}[{i}]`")
        raise type(error)(text) from None

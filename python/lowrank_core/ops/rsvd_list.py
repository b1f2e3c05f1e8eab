"""The range finder over a list of matrices: the refresh of a whole model in one call."""

from __future__ import annotations

from collections.abc import Sequence

from lowrank_core import _core
from lowrank_core.ops.arrays import Array, call_finite, resolve_precision
from lowrank_core.ops.declare import without_derivative
from lowrank_core.ops.rsvd import fake_range_finder


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
    seeds = [0] * len(arrays) if seeds is None else list(seeds)
    if not len(arrays) == len(ranks) == len(bases) == len(seeds):
        raise ValueError(
            "range_finder_list: `arrays`, `ranks`, `bases` and `seeds` must have the same length, "
            f"got {len(arrays)}, {len(ranks)}, {len(bases)} and {len(seeds)}"
        )
    out = [
        fake_range_finder(a, rank, basis, oversample=oversample, niter=niter, seed=seed, precision=precision)
        for a, rank, basis, seed in zip(arrays, ranks, bases, seeds, strict=True)
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

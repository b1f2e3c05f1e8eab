"""The searches over a list of matrices: the refresh of a whole model in one call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lowrank_core import _core
from lowrank_core.ops.arrays import Array, call_finite, factor_dtype, plain_ints, resolve_precision
from lowrank_core.ops.operators import without_derivative
from lowrank_core.ops.rsvd.factor import QB, GrowthTarget, check_growth, grow
from lowrank_core.ops.rsvd.fixed_rank import RANGE_FINDER

HELD = 2**26  # bytes of factors of the largest rank allowed that a list holds beside its results


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

    def compute() -> tuple[Array, ...]:
        find_into(out, arrays, oversample=oversample, niter=niter, bases=bases, seeds=seeds, precision=precision)
        return tuple(out)

    return list(without_derivative("range_finder_list", [*arrays, *bases], compute))


def find_into(
    out: list[Array],
    arrays: Sequence[Array],
    *,
    oversample: int,
    niter: int,
    bases: Sequence[Array | None],
    seeds: Sequence[int],
    precision: str | None = None,
) -> None:
    """`range_finder_list` into arrays [..., m, r] of the factors' dtype: unchecked, and nothing of it is recorded."""
    call_finite(
        "range_finder_list",
        _core.range_finder,
        out,
        list(arrays),
        arrays={f"arrays[{i}]": a for i, a in enumerate(arrays)} | {f"bases[{i}]": b for i, b in enumerate(bases)},
        oversample=oversample,
        niter=niter,
        basis=list(bases),
        seed=list(seeds),
        precision=resolve_precision("range_finder_list", precision),
    )


def qb_list(
    arrays: Sequence[Array],
    *,
    energy: float | None = None,
    tol: float | None = None,
    max_ranks: Sequence[int | None] | None = None,
    block: int = 16,
    niter: int = 1,
    seeds: Sequence[int] | None = None,
) -> list[QB]:
    """`qb` of each array, bit for bit, in one call.

    Matrices of up to 2048 x 2048 entries run side by side, one thread each, as in `range_finder_list`.

    Args:
      arrays: each [m, n], as `a` of `qb`; shapes and dtypes may differ.
      energy, tol, block, niter: for all, as there.
      max_ranks: one for each array, None where min(m, n) is; None: None for all. The factors of the largest rank
        allowed exist while a matrix is searched: of the whole list as far as they take 64 MiB together, beyond that
        of a part of it at a time.
      seeds: one for each array; None: 0 for all.

    Returns:
      One QB(q [m, k], b [k, n], captured) for each array, each with its own k.

    Raises:
      ValueError: lists of different lengths, or what `qb` refuses.

    Warns:
      RuntimeWarning: as `qb`, once for each dtype of the factors.

    Numerics, source: as `qb`. A plain function, not differentiable.
    """
    count = len(arrays)
    caps = list(plain_ints(*([None] * count if max_ranks is None else max_ranks)))
    seeds = [0] * count if seeds is None else list(plain_ints(*seeds))
    block, niter = plain_ints(block, niter)
    target = GrowthTarget.checked("qb_list", energy, tol, block, niter)
    if not count == len(caps) == len(seeds):
        raise ValueError(
            "qb_list: `arrays`, `max_ranks` and `seeds` must have the same length, "
            f"got {count}, {len(caps)} and {len(seeds)}"
        )
    for i, (a, cap, seed) in enumerate(zip(arrays, caps, seeds, strict=True)):
        with _named("qb", i, a="arrays", max_rank="max_ranks", seed="seeds"):
            caps[i] = check_growth(a, cap, seed)
    target.warn_of_resolution("qb_list", {factor_dtype(a) for a in arrays})

    def compute() -> tuple[Any, ...]:
        found: dict[int, tuple[Array, Array, float]] = {}
        for part in _parts([sum(a.shape) * cap * _item_size(a) for a, cap in zip(arrays, caps, strict=True)]):
            named = {f"arrays[{i}]": arrays[i] for i in part}
            grown = grow("qb_list", named, [caps[i] for i in part], [seeds[i] for i in part], target)
            found |= zip(part, grown, strict=True)
        return tuple(x for i in range(count) for x in found[i])

    flat = without_derivative("qb_list", arrays, compute)  # which sees tensors, not the tuples they are in
    return [QB(*flat[3 * i : 3 * i + 3]) for i in range(count)]


def _item_size(a: Array) -> int:
    """Of an element of its factors."""
    return 8 if factor_dtype(a) == "float64" else 4


def _parts(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Positions of members that are searched together, by what their factors take at the largest rank allowed: as many
    as fit, but at least one for each thread. The largest come first, as the kernel takes them.
    """
    part: list[int] = []
    held = 0
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        if part and held + sizes[i] > HELD and len(part) >= _core.num_threads():
            yield part
            part, held = [], 0
        part.append(i)
        held += sizes[i]
    if part:
        yield part


def _output(i: int, a: Array, rank: int, basis: Array | None, **options: Any) -> Array:
    """Checks member `i` and allocates its result."""
    with _named("range_finder", i, a="arrays", rank="ranks", basis="bases", seed="seeds"):
        return RANGE_FINDER.fake(a, rank, basis, **options)


@contextmanager
def _named(op: str, i: int, **lists: str) -> Iterator[None]:
    """A refusal of `op` becomes one of its list form: an argument is member `i` of the list of that name."""
    try:
        yield
    except (ValueError, TypeError) as error:
        text = str(error).replace(f"{op}:", f"{op}_list:", 1)
        for argument, list_of in lists.items():
            text = text.replace(f"`{argument}`", f"`{list_of}[{i}]`")
        raise type(error)(text) from None

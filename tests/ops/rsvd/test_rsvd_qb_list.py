"""qb_list: a loop over qb, in one call."""

from __future__ import annotations

import tracemalloc
import warnings
from collections.abc import Sequence
from typing import Any

import lowrank_core
import numpy as np
import pytest
import torch
from lowrank_core import _core
from lowrank_core.ops import QB, qb_list
from lowrank_core.ops.rsvd import lists
from testing import cases, checks, machine
from torch import Tensor

SHAPES = ((60, 40), (17, 90), (128, 128), (1, 30), (33, 1), (0, 5), (64, 64), (45, 61))
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def ragged() -> list[Tensor]:
    """Of several shapes and dtypes, of which energy 0.9 is of several ranks; one is zero, one half of its memory."""
    items = [
        cases.decaying(m, n, decades=0.5 + 0.5 * i, seed=i) if m and n else torch.zeros(m, n)
        for i, (m, n) in enumerate(SHAPES)
    ]
    items = [a.to(DTYPES[i % len(DTYPES)]) for i, a in enumerate(items)]
    items[6].zero_()
    items[7] = torch.stack((items[7], items[7]), dim=-1)[..., 0]
    return items


def looped(items: Sequence[Any], ranks: Sequence[int | None], seeds: Sequence[int], **options: Any) -> list[QB]:
    return [
        lowrank_core.qb(a, max_rank=rank, seed=seed, **options)
        for a, rank, seed in zip(items, ranks, seeds, strict=True)
    ]


def assert_equal(together: list[QB], alone: list[QB]) -> None:
    assert len(together) == len(alone)
    for one, other in zip(together, alone, strict=True):
        assert isinstance(one, QB) and type(one.captured) is float
        assert checks.same_bits(one[:2], other[:2]) and one.captured == other.captured


@pytest.mark.parametrize(
    "options", [{"energy": 0.9}, {"tol": 0.1, "block": 3, "niter": 2}, {"energy": 0.5, "niter": 0}]
)
@pytest.mark.parametrize("level", _core.isa_levels())
def test_is_qb_of_each(level: str, options: dict[str, Any]) -> None:
    """Whatever the threads, at every level."""
    items, seeds = ragged(), range(8)
    ranks = [None, 5, 7, None, 0, None, 3, 45]
    with machine.isa(level):
        alone = looped(items, ranks, seeds, **options)
        assert len({out.q.shape[1] for out in alone}) > 4
        for count in (1, 2, 3):
            with machine.threads(count):
                assert_equal(qb_list(items, max_ranks=ranks, seeds=list(seeds), **options), alone)


def test_what_is_not_said() -> None:
    items = ragged()
    assert_equal(qb_list(items, energy=0.9), looped(items, [None] * 8, [0] * 8, energy=0.9))
    assert qb_list([], energy=0.9) == []
    plain = [a.numpy() for a in items[:2]]
    found = qb_list(tuple(plain), energy=0.9)
    assert all(isinstance(x, np.ndarray) and x.flags.owndata for out in found for x in out[:2])
    assert_equal(found, looped(plain, [None] * 2, [0] * 2, energy=0.9))


def test_zero_matrices() -> None:
    for out in qb_list([torch.zeros(7, 5), np.zeros((3, 9)), torch.zeros(4, 4, dtype=torch.bfloat16)], energy=0.9):
        assert out.q.shape[1] == out.b.shape[0] == 0 and out.captured == 1.0


def test_matrices_of_any_scale() -> None:
    """Those that are searched by way of a copy, beside one that is not."""
    items = [cases.decaying(50, 40, seed=i).float() * scale for i, scale in enumerate((1e-30, 1.0, 1e30))]
    assert_equal(qb_list(items, energy=0.9), looped(items, [None] * 3, [0] * 3, energy=0.9))


def test_large_ones_beside_small_ones() -> None:
    """Those of more than 2048 x 2048 have all threads each."""
    items = [cases.gaussian(30, 40).float(), cases.gaussian(2049, 2051).float(), cases.gaussian(50, 20).float()]
    ranks = [4, 3, 2]
    options: dict[str, Any] = {"energy": 0.9, "block": 4, "niter": 0}
    with machine.threads(2):
        together = qb_list(items, max_ranks=ranks, **options)
    with machine.threads(1):
        assert_equal(together, looped(items, ranks, [0] * 3, **options))


def test_results_own_their_memory() -> None:
    found = qb_list([cases.gaussian(60, 50), cases.decaying(50, 60)], energy=0.5)
    for out in found:
        for x in out[:2]:
            assert x.is_contiguous() and x.untyped_storage().nbytes() == x.numel() * x.element_size()


def test_factors_of_the_largest_rank_do_not_all_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 24 matrices of rank 2 they would take 24 times 1 MiB."""
    monkeypatch.setattr(lists, "HELD", 4 << 20)
    draw = cases.generator(0)
    items = [draw.standard_normal((256, 2)) @ draw.standard_normal((2, 256)) for _ in range(24)]
    with machine.threads(2):
        tracemalloc.start()
        try:
            found = qb_list(items, tol=1e-3)
            held, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert {out.q.shape[1] for out in found} == {2}
    assert held < 24 * (2 * 2 * 256 * 8 + 4096)
    assert 3.9 * 2**20 < peak - held < 4.5 * 2**20
    assert_equal(found, looped(items, [None] * 24, [0] * 24, tol=1e-3))


@pytest.mark.parametrize("threads", [1, 3])
def test_parts(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setattr(lists, "HELD", 10)
    with machine.threads(threads):
        parts = list(lists._parts([3, 20, 1, 4, 0, 5, 2]))
    assert parts == ([[1], [5, 3], [0, 6, 2, 4]] if threads == 1 else [[1, 5, 3], [0, 6, 2, 4]])


# ---- refusals ----------------------------------------------------------------------------------------------------

A = np.ones((7, 5))
REFUSED: tuple[tuple[list[Any], dict[str, Any], str], ...] = (
    ([A], {}, "exactly one of `energy` and `tol` must be given, got None and None"),
    ([], {"energy": 0.5, "tol": 0.5}, "exactly one of `energy` and `tol` must be given, got 0.5 and 0.5"),
    ([A], {"energy": 1.5}, r"`energy` must be in \(0, 1\], got 1.5"),
    ([A], {"tol": 1.0}, r"`tol` must be in \[0, 1\), got 1.0"),
    ([], {"energy": 0.5, "block": 0}, "`block` must be >= 1, got 0"),
    ([A], {"energy": 0.5, "niter": -1}, "`niter` must be >= 0, got -1"),
    (
        [A, A],
        {"energy": 0.5, "max_ranks": [5, 6]},
        r"`max_ranks\[1\]` must be between 0 and 5, got 6 for shape \[7, 5\]",
    ),
    ([A, A], {"energy": 0.5, "seeds": [-1, 0]}, r"`seeds\[0\]` must be between 0 and"),
    ([A, A], {"energy": 0.5, "max_ranks": [1]}, ".* must have the same length, got 2, 1 and 2"),
    ([A, A], {"energy": 0.5, "seeds": [1, 1, 1]}, ".* must have the same length, got 2, 2 and 3"),
    ([A, np.ones((2, 3, 4))], {"energy": 0.5}, r"`arrays\[1\]` must be one matrix, got shape \[2, 3, 4\]"),
    ([A, np.ones(3)], {"energy": 0.5}, r"`arrays\[1\]` must have at least 2 dimensions, got shape \[3\]"),
)


@pytest.mark.parametrize(("items", "options", "text"), REFUSED, ids=[text for *_, text in REFUSED])
def test_refusals(items: list[Any], options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=f"^qb_list: {text}"):
        qb_list(items, **options)


def test_what_is_no_array_is_named() -> None:
    with pytest.raises(TypeError, match=r"^qb_list: `arrays\[1\]` must be a numpy.ndarray, torch.Tensor or"):
        qb_list([A, A.tolist()], energy=0.5)
    with pytest.raises(TypeError, match=r"^qb_list: `max_ranks\[1\]` must be an integer, got 1\.5"):
        qb_list([A, A], energy=0.5, max_ranks=[1, 1.5])  # type: ignore[list-item]


def test_a_matrix_that_is_not_finite_is_named_whichever_part_it_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "HELD", 1)
    items = [A.copy() for _ in range(6)]
    items[4][3, 2] = np.nan
    with machine.threads(1), pytest.raises(ValueError, match=r"^qb_list: `arrays\[4\]` must be finite, got NaN"):
        qb_list(items, energy=0.5)


def test_a_target_below_the_resolution_warns_once_for_each_dtype() -> None:
    single, double = cases.decaying(60, 50).float(), cases.decaying(60, 50)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        qb_list([single, double, single.bfloat16(), double], tol=1e-8)
    texts = [str(warning.message) for warning in caught]
    assert [text[: text.index(",")] for text in texts] == [
        f"qb_list: a relative error of 1.0e-08 is below the resolution of {dtype}" for dtype in ("float32", "float64")
    ]
    assert {warning.filename for warning in caught} == {__file__}
    qb_list([double], tol=1e-3)  # and no warning, which would be an error here


def test_no_derivative() -> None:
    """The values are those of `qb`; asking for a gradient says so."""
    a, b = cases.decaying(20, 15).requires_grad_(), cases.decaying(15, 20)
    found = qb_list([b, a], energy=0.9)
    assert_equal(found, looped([b, a], [None] * 2, [0] * 2, energy=0.9))
    with pytest.raises(NotImplementedError, match=r"^qb_list: has no derivative; detach its input"):
        found[1].b.sum().backward()

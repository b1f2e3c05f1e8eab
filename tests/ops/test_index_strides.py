"""Index arrays in memory of every kind: what is read are their entries, not what lies behind the first one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lowrank_core as lc
import numpy as np
import pytest
import torch
from testing import cases, checks
from torch import Tensor

N, BATCH = 12, 3
OLD, NEW = (0, 3, 4, 8, 10), (1, 3, 8, 9, 10, 11)
SIDES = ("left", "right")


def every_second(x: Tensor) -> Tensor:
    inside = torch.full((*x.shape[:-1], 2 * x.shape[-1]), 7)[..., ::2]
    return inside.copy_(x)


def from_a_column(x: Tensor) -> Tensor:
    """The batch runs fastest in memory."""
    return x.mT.contiguous().mT if x.ndim > 1 else every_second(x)


def of_a_table(x: Tensor) -> Tensor:
    """A slice of a wider table of indices."""
    inside = torch.full((*x.shape[:-1], x.shape[-1] + 4), 5)[..., 2:-2]
    return inside.copy_(x)


def expanded(x: Tensor) -> Tensor:
    """One list for the whole batch, stride 0."""
    return x[0].expand_as(x) if x.ndim > 1 else x


def backwards(x: Any) -> Any:
    """Through a negative stride, which NumPy alone has."""
    return np.ascontiguousarray(np.asarray(x)[..., ::-1])[..., ::-1]


LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "every second": every_second,
    "from a column": from_a_column,
    "of a table": of_a_table,
    "expanded": expanded,
}


def indices(values: tuple[int, ...], batch: tuple[int, ...]) -> Tensor:
    return torch.tensor(values).expand(*batch, len(values)).contiguous()


def shaped(rows: int, count: int, side: str, batch: tuple[int, ...], seed: int = 0) -> Tensor:
    return cases.gaussian(*((count, rows) if side == "left" else (rows, count)), *batch, seed=seed).float()


def moments(kind: Callable[[Any], Any], old: Any, new: Any, side: str, batch: tuple[int, ...]) -> Any:
    m, v = (shaped(6, len(OLD), side, batch, seed) for seed in (1, 2))
    return lc.rotate_moments(kind(m), kind(v), old, new, side=side)


def as_is(x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize("kind", ["torch", "numpy"])
@pytest.mark.parametrize("batch", [(), (BATCH,)], ids=["one", "batch"])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("layout", [*LAYOUTS, "backwards"])
def test_strided_indices(layout: str, side: str, batch: tuple[int, ...], kind: str) -> None:
    if layout == "backwards" and kind == "torch":
        return  # torch has no negative strides
    lay = LAYOUTS.get(layout, backwards)
    convert = (lambda x: x if isinstance(x, np.ndarray) else x.numpy()) if kind == "numpy" else as_is
    straight = {name: convert(indices(values, batch)) for name, values in (("old", OLD), ("new", NEW))}
    other = {name: convert(lay(indices(values, batch))) for name, values in (("old", OLD), ("new", NEW))}
    if batch or layout in ("every second", "backwards"):  # else one list, contiguous though not at its buffer's start
        contiguous = [x.is_contiguous() if kind == "torch" else x.flags.c_contiguous for x in other.values()]
        assert not any(contiguous)
    coeffs = convert(shaped(6, len(OLD), side, batch))
    back = [lc.dct_project_back(coeffs, x["old"], N, side=side) for x in (straight, other)]
    assert checks.same_bits(*back)
    exact = moments(convert, straight["old"], straight["new"], side, batch)
    for old, new in ((other["old"], other["new"]), (other["old"], straight["new"]), (straight["old"], other["new"])):
        assert checks.same_bits(moments(convert, old, new, side, batch), exact)


def test_indices_of_each_matrix_are_its_own() -> None:
    """A batch whose lists differ, laid out by columns: mixing them up would show."""
    lists = torch.tensor([[0, 2, 5], [1, 3, 4], [2, 6, 11]])
    coeffs = shaped(6, 3, "right", (BATCH,))
    found = lc.dct_project_back(coeffs, from_a_column(lists), N, side="right")
    for i in range(BATCH):
        assert checks.same_bits(found[i], lc.dct_project_back(coeffs[i], lists[i], N, side="right"))
    m, v = shaped(6, 3, "right", (BATCH,), 1), shaped(6, 3, "right", (BATCH,), 2)
    rotated = lc.rotate_moments(m, v, from_a_column(lists), from_a_column(lists.flip(0)), side="right")
    for i in range(BATCH):
        alone = lc.rotate_moments(m[i], v[i], lists[i], lists[BATCH - 1 - i], side="right")
        assert checks.same_bits([r[i] for r in rotated], list(alone))


def test_a_selection_is_taken_by_what_follows_it() -> None:
    """Slices of what `dct_select` returns go straight back in."""
    a = cases.gaussian(10, N, 4).float()
    chosen = lc.dct_select(a, 6, side="right")
    every = chosen.indices[::2, 1::2]
    coeffs = chosen.coeffs[::2, :, 1::2]
    found = lc.dct_project_back(coeffs, every, N, side="right")
    assert checks.same_bits(found, lc.dct_project_back(coeffs.contiguous(), every.contiguous(), N, side="right"))

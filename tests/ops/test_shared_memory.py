"""Arrays of one call that share memory, and members of lists by name: what the binding of every kernel sees to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lowrank_core import _core
from testing import cases, foreign

OK = np.ones((2, 2))
INTEGERS = cases.generator(2, 2).integers(-3, 4, (2, 2)).astype(float)


def test_a_member_of_a_list_is_named_by_its_place() -> None:
    matrices = [np.ones((2, 2)), np.ones((2, 2)), OK.astype(">f8")]
    with pytest.raises(_core.ArrayError, match=r"chain_matmul: `matrices\[2\]` must have the machine's byte order"):
        _core.chain_matmul(np.empty((2, 2)), matrices)
    layer = [np.ones((2, 1)), np.ones((1, 1)), np.ones((2, 1)), np.ones((2, 1)), np.ones((2, 1))]
    broken = [*layer[:3], foreign.unaligned(layer[3]), layer[4]]
    options = {"lr": 0.0, "tol": 0.0, "min_rank": 1, "max_rank": 1, "budget": None, "weights": [1.0, 1.0]}
    with pytest.raises(_core.ArrayError, match=r"augment_truncate: `layers\[1\]\[3\]` must be aligned"):
        _core.augment_truncate([[np.empty((2, 2)) for _ in range(5)] for _ in range(2)], [layer, broken], **options)


SHARED: dict[str, Callable[[np.ndarray], tuple[Any, Any, Any]]] = {
    "the same": lambda x: (x[:2, :2], x[:2, :2], OK),
    "transposed": lambda x: (x[:2, :2], OK, x[:2, :2].T),
    "one element": lambda x: (x[:2, :2], x[1:3, 1:3], OK),
    "another library": lambda x: (x[:2, :2], OK, torch.from_numpy(x)[1:3, :2]),
    "another size": lambda x: (x.view(np.float32)[:2, :2], x[:2, :2], OK),
}


@pytest.mark.parametrize("name", SHARED)
def test_an_output_shares_no_memory_with_an_input(name: str) -> None:
    base = np.ones((4, 4))
    with pytest.raises(_core.ArrayError, match=r"gemm: `c` must not share memory with `[ab]`, got overlapping arrays"):
        _core.gemm(*SHARED[name](base))
    assert np.array_equal(base, np.ones((4, 4)))


@pytest.mark.parametrize("strides", [(0, 8), (8, 0), (8, 8), (0, 0)], ids=str)
def test_an_output_does_not_overlap_itself(strides: tuple[int, int]) -> None:
    out = np.lib.stride_tricks.as_strided(np.ones(16), (2, 2), strides)
    for convert in (lambda a: a, torch.from_numpy):
        with pytest.raises(_core.ArrayError, match="gemm: `c` must not overlap itself in memory"):
            _core.gemm(convert(out), OK, OK)


def test_arrays_that_interleave_share_nothing() -> None:
    base = np.zeros((2, 6))
    base[:, ::3], base[:, 1::3] = INTEGERS, INTEGERS
    _core.gemm(base[:, 2::3], base[:, ::3], base[:, 1::3])
    assert np.array_equal(base[:, 2::3], INTEGERS @ INTEGERS)
    _core.gemm(base[:, :2], OK, OK)  # and inputs may be one array
    _core.gemm(np.empty((2, 2)), base[:, :2], base[:, :2])

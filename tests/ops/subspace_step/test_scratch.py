"""Memory that the core keeps from one step to the next."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from lowrank_core.ops.subspace_step.scratch import scratch

SHAPES = [(3, 5), (0, 7), (1, 1), (700, 1500), (2048, 2048), (2, 3)]  # 4 MB and 16 MB among small ones


@pytest.mark.parametrize("like", [np.zeros(1), torch.zeros(1)], ids=["numpy", "torch"])
def test_arrays_have_memory_of_their_own(like: object) -> None:
    dtypes = ["float32", "float64"] * 3
    arrays = scratch([like] * 6, SHAPES, dtypes)
    for i, (array, shape, dtype) in enumerate(zip(arrays, SHAPES, dtypes, strict=True)):
        assert type(array) is type(like) and tuple(array.shape) == shape and str(array.dtype).endswith(dtype)
        address = array.data_ptr() if isinstance(array, torch.Tensor) else array.ctypes.data
        assert not math.prod(shape) or address % 64 == 0
        array[...] = i
    for i, array in enumerate(arrays):
        assert bool((array == i).all())


def test_one_list_may_hold_arrays_of_both_libraries() -> None:
    first, second = scratch([np.zeros(1), torch.zeros(1)], [(2, 2), (2, 2)], ["float32", "float32"])
    first[...], second[...] = 1.0, 2.0
    assert isinstance(first, np.ndarray) and first.sum() == 4.0 and float(second.sum()) == 8.0


def test_memory_comes_again_once_its_last_array_is_gone() -> None:
    like = torch.zeros(1)
    first, second = scratch([like] * 2, [(512, 512)] * 2, ["float32"] * 2)
    places = {first.data_ptr(), second.data_ptr()}
    del first
    held = scratch([like] * 2, [(512, 512)] * 2, ["float32"] * 2)
    assert second.data_ptr() not in {x.data_ptr() for x in held}
    del second
    assert {x.data_ptr() for x in scratch([like] * 2, [(512, 512)] * 2, ["float32"] * 2)} == places


def test_nothing_is_carved_out_of_nothing() -> None:
    assert scratch([], [], []) == []

"""Arrays that last for one call or one step, in memory that the core keeps from one to the next."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from lowrank_core import _core
from lowrank_core.ops.arrays import Array, is_torch

_LINE = 64  # bytes of a cache line, at which every array begins
_PIECE = 8 << 20  # bytes that share a piece of memory, unless one array is larger: the core keeps 32 MB of pieces


def scratch(likes: Sequence[Array], shapes: Sequence[tuple[int, int]], dtypes: Sequence[str]) -> list[Array]:
    """Uninitialised matrices on the host, row by row, each of the kind of its `like`: NumPy's or torch's.

    A page of memory that is new costs more than what is computed with it. These come from blocks that are used again; a
    block is given back when the last of its arrays is gone.
    """
    arrays: list[Array] = []
    whole = list(zip(likes, shapes, dtypes, strict=True))
    items = {dtype: np.dtype(dtype).itemsize for dtype in set(dtypes)}
    sizes = [-(-rows * cols * items[dtype] // _LINE) * _LINE for _, (rows, cols), dtype in whole]
    while len(arrays) < len(whole):
        first = len(arrays)
        end, total = first + 1, sizes[first]
        while end < len(whole) and total + sizes[end] <= _PIECE:
            total += sizes[end]
            end += 1
        arrays += _carved(whole[first:end], sizes[first:end])
    return arrays


def _carved(arrays: list[tuple[Array, tuple[int, int], str]], sizes: list[int]) -> list[Array]:
    """The arrays, out of one block."""
    block: Any = _core.Scratch(max(_LINE, sum(sizes)))
    begin, carved = 0, []
    memory: dict[tuple[bool, str], tuple[Array, int]] = {}  # all of the block as one dtype, and the bytes of an item
    for (like, shape, dtype), size in zip(arrays, sizes, strict=True):
        kind = is_torch(like), dtype
        if kind not in memory:
            memory[kind] = _as_torch(block, dtype) if kind[0] else np.frombuffer(block, dtype), np.dtype(dtype).itemsize
        (whole, item), (rows, cols) = memory[kind], shape
        first = begin // item
        if kind[0]:
            carved.append(whole.as_strided(shape, (cols, 1), first))  # one view, where a view of a slice takes two
        else:
            carved.append(whole[first : first + rows * cols].reshape(shape))
        begin += size
    return carved


def _as_torch(block: Any, dtype: str) -> Array:
    torch = sys.modules["torch"]
    return torch.frombuffer(block, dtype=getattr(torch, dtype))

"""The same numbers in memory of every kind: strided, embedded in NaN, read-only, or reachable through DLPack alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def _buffer(a: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.full(shape, math.nan, dtype=a.dtype)


def transposed(a: Tensor) -> Tensor:
    """Column-major."""
    return a.mT.contiguous().mT


def embedded(a: Tensor) -> Tensor:
    """A block of a larger buffer of NaN."""
    *batch, m, n = a.shape
    inside = _buffer(a, (*batch, m + 3, n + 5))[..., 1 : m + 1, 2 : n + 2]
    inside.copy_(a)
    return inside


def strided(a: Tensor) -> Tensor:
    """Every second row and third column of a buffer of NaN: no unit stride at all."""
    *batch, m, n = a.shape
    inside = _buffer(a, (*batch, 2 * m, 3 * n))[..., ::2, 1::3]
    inside.copy_(a)
    return inside


def batch_last(a: Tensor) -> Tensor:
    """The leading dimensions run fastest in memory."""
    order = range(a.ndim)
    inner = a.permute(*order[-2:], *order[:-2]).contiguous()
    return inner.permute(*order[2:], 0, 1)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "transposed": transposed,
    "embedded": embedded,
    "strided": strided,
    "batch_last": batch_last,
}


def outside_is_nan(inside: Tensor) -> bool:
    """Whether the buffer that `inside` was cut out of holds NaN everywhere else."""
    storage = inside.untyped_storage()
    whole = torch.empty(0, dtype=inside.dtype).set_(storage)
    marked = whole.clone()
    marked.as_strided(inside.shape, inside.stride(), inside.storage_offset()).fill_(math.nan)
    return bool(marked.isnan().all())


class DLPackOnly:
    """An array of a library that nobody knows: it offers `__dlpack__` and nothing else."""

    def __init__(self, array: Any, *, versioned: bool = True) -> None:
        self._array = array
        self._versioned = versioned

    def __dlpack__(self, **options: Any) -> Any:
        if options and not self._versioned:
            raise TypeError("__dlpack__() got an unexpected keyword argument")
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


def reversed_view(a: np.ndarray) -> np.ndarray:
    """The same values through negative strides, which torch does not have."""
    return np.ascontiguousarray(a[..., ::-1, ::-1])[..., ::-1, ::-1]

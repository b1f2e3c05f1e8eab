"""A list of codes, decoded in one call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lowrank_core import _core, dequantize_int4, quantize_int4
from lowrank_core.ops.int4_project.codes import dequantize_list
from lowrank_core.ops.int4_project.matrix import Int4Matrix
from torch import Tensor

SHAPES = ((64, 4), (300, 7), (32, 1), (130, 33), (5, 0))


def matrix(rows: int, cols: int) -> Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(rows))


def decoded(codes: list[Int4Matrix], dtype: str) -> list[Any]:
    of_torch = isinstance(codes[0].packed, Tensor)
    out = [torch.empty(q.shape, dtype=getattr(torch, dtype)) if of_torch else np.empty(q.shape, dtype) for q in codes]
    dequantize_list(codes, out)
    return out


@pytest.mark.parametrize("scheme", ["affine", "affine_zp", "symmetric", "nf4"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("threads", [1, 2])
def test_each_is_what_it_is_alone(scheme: str, dtype: str, threads: int) -> None:
    codes = [
        quantize_int4(matrix(*shape), dim=0, scheme=scheme, group_size=32 * (1 + i)) for i, shape in enumerate(SHAPES)
    ]
    torch.set_num_threads(threads)
    found = decoded(codes, dtype)
    torch.set_num_threads(1)
    alone = [dequantize_int4(q, getattr(torch, dtype)) for q in codes]
    assert all(map(torch.equal, found, alone)) and [tuple(x.shape) for x in found] == list(SHAPES)


def test_of_numpy_and_of_nothing() -> None:
    codes = [quantize_int4(matrix(*shape).numpy(), dim=0) for shape in SHAPES[:2]]
    found = decoded(codes, "float64")
    assert all(np.array_equal(one, dequantize_int4(q, "float64")) for one, q in zip(found, codes, strict=True))
    dequantize_list([], [])


def test_lists_of_unlike_lengths_are_refused() -> None:
    q = quantize_int4(matrix(64, 4), dim=0)
    out = [torch.empty(64, 4)]
    for lists in (
        ([], [q.scales], [q.offsets], [128]),
        ([q.packed], [q.scales], [], [128]),
        ([q.packed], [q.scales], [q.offsets], []),
    ):
        packed, scales, offsets, sizes = lists
        with pytest.raises(ValueError, match="lists must be of one length"):
            _core.dequantize_int4_list(out, packed, scales, offsets, group_sizes=sizes, dim=0, scheme="affine")
    with pytest.raises(ValueError, match="must be contiguous and fit the shape"):
        _core.dequantize_int4_list(
            [torch.empty(65, 4)], [q.packed], [q.scales], [q.offsets], group_sizes=[32], dim=0, scheme="affine"
        )

"""INT4 codes of the emulated GPU and of the host: the same bits (tier D0)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from lowrank_core import _core
from lowrank_core.ops.int4_project.codes import ROUNDINGS
from lowrank_core.ops.int4_project.matrix import SCHEMES, groups_of, has_offsets, with_size
from testing.emulation import host
from torch import Tensor

HOST = host()
GROUP = 32


def arrays(dtype: torch.dtype) -> Iterator[tuple[Tensor, int]]:
    """Each with a dimension: whole groups and not, lines side by side and not, strides that jump, one element, none."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(7, 96, 5, generator=generator, dtype=torch.float64).to(dtype)
    for dim in range(3):
        yield x, dim
        yield x.permute(2, 0, 1), dim
        yield x[::2, 3:70:3], dim
    sizes = torch.logspace(-4, 4, 64, dtype=torch.float64).to(dtype)
    yield sizes * torch.randn(64, generator=generator), 0
    for shape, dim in (((1,), 0), ((0, 4), 0), ((3, 0), 1), ((40, 1), 0)):
        yield torch.randn(shape, generator=generator).to(dtype), dim
    yield torch.full((3, 64), 0.3).to(dtype), 1


def coded(core: Any, x: Tensor, dim: int, scheme: str, seed: int | None) -> list[Tensor]:
    """Packed codes, scales and offsets, and what they stand for in two dtypes, filled with ones before."""
    groups = groups_of(x.shape[dim], GROUP)
    packed = torch.ones(with_size(tuple(x.shape), dim, groups * GROUP // 2), dtype=torch.uint8)
    scales = torch.ones(with_size(tuple(x.shape), dim, groups), dtype=torch.bfloat16)
    offsets = torch.ones_like(scales) if has_offsets(scheme) else None
    settings = {"dim": dim, "group_size": GROUP, "scheme": scheme}
    refused = {"refused": torch.zeros(1, dtype=torch.int32)} if core is _core else {}
    core.quantize_int4(packed, scales, offsets, x, seed=seed, **settings, **refused)
    assert not refused or not refused["refused"].item()
    decoded = [torch.ones(x.shape, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    for out in decoded:
        core.dequantize_int4(out, packed, scales, offsets, **settings)
    return [one for one in (packed, scales, offsets, *decoded) if one is not None]


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_codes_and_what_they_stand_for(dtype: torch.dtype, scheme: str, rounding: str) -> None:
    for number, (x, dim) in enumerate(arrays(dtype)):
        seed = number if rounding == "stochastic" else None
        for ours, theirs in zip(*(coded(core, x, dim, scheme, seed) for core in (_core, HOST)), strict=True):
            assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8)), (tuple(x.shape), x.stride(), dim)


def test_a_group_without_codes_is_told_by_a_flag_alone() -> None:
    """The other groups have theirs."""
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    x[2, 40] = float("nan")
    packed, scales = torch.zeros(4, 32, dtype=torch.uint8), torch.zeros(4, 2, dtype=torch.bfloat16)
    refused = torch.zeros(1, dtype=torch.int32)
    _core.quantize_int4(packed, scales, None, x, dim=1, group_size=GROUP, scheme="nf4", refused=refused)
    assert refused.item() == 1 and (scales > 0).sum() == 7 and scales[2, 1] == 0


def test_the_host_knows_no_device() -> None:
    """What it gets is in its memory, as far as it can tell; the emulated one takes nothing else for a GPU's."""
    out = np.empty((3, 4), np.float32)
    for core in (_core, HOST):
        core.sketch(out, seed=1)
    with pytest.raises(ValueError, match="must be in host memory, got a CUDA array"):
        _core.gemm(np.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32))

"""Family `int4_project` in float64: the oracle of its tests and benches. Signatures are those of the operators.

Tensors in; codes as uint8, everything else float64. Nothing is checked: a wrong argument fails somewhere inside torch.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lowrank_core.reference.philox import bits

STREAM = 4
LARGEST = 3.3895313892515355e38  # of the finite bfloat16
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022833334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""Dettmers et al. 2023 (arXiv 2305.14314), appendix E."""


def bfloat16_above(x: Tensor) -> Tensor:
    """The smallest bfloat16 >= x, for x >= 0 in float64."""
    near = x.bfloat16()
    following = (near.view(torch.int16) + 1).view(torch.bfloat16)
    return torch.where(near.double() < x, following, near).double().clamp(max=LARGEST)


def bfloat16_below(x: Tensor) -> Tensor:
    """The largest bfloat16 <= x."""
    near = x.bfloat16()
    step = torch.where(near > 0, -1, 1).to(torch.int16)  # towards minus infinity
    preceding = torch.where(near == 0, -(2.0**-133), (near.view(torch.int16) + step).view(torch.bfloat16).double())
    return torch.where(near.double() > x, preceding, near.double())


def levels(scheme: str) -> Tensor:
    """What the 16 codes stand for, in steps of the scale and up to the offset."""
    if scheme == "nf4":
        return torch.tensor(NF4, dtype=torch.float64)
    return torch.arange(16, dtype=torch.float64) - (8 if scheme == "symmetric" else 0)


def _grouped(x: Tensor, dim: int, group_size: int) -> Tensor:
    """[..., groups, group_size], `dim` last; a last group that is not full repeats its last element."""
    lines = x.movedim(dim, -1)
    missing = -lines.shape[-1] % group_size
    if missing:
        lines = torch.cat([lines, lines[..., -1:].expand(*lines.shape[:-1], missing)], dim=-1)
    return lines.reshape(*lines.shape[:-1], -1, group_size)


def _fit(low: Tensor, high: Tensor, scheme: str, rounding: str) -> tuple[Tensor, Tensor]:
    """Scale and offset of groups with these extremes, as they are stored."""
    largest = torch.maximum(high, -low)
    if scheme == "affine":
        offset = torch.where(low == high, low.bfloat16().double(), bfloat16_below(low))
        return torch.where(low == high, 0.0, bfloat16_above((high - offset) / 15)), offset
    if scheme == "affine_zp":
        low, high = low.clamp(max=0), high.clamp(min=0)
        if rounding == "nearest":
            scale = bfloat16_above((high - low) / 15)
            return scale, torch.where(scale > 0, torch.floor(-low / scale + 0.5), 0.0)
        zero = torch.arange(16, dtype=torch.float64)
        covering = torch.maximum(
            (-low[..., None] / zero).nan_to_num(0.0), (high[..., None] / (15 - zero)).nan_to_num(0.0)
        )
        smallest = covering.min(dim=-1)
        return bfloat16_above(smallest.values), smallest.indices.double()
    return bfloat16_above(largest / 7 if scheme == "symmetric" else largest), torch.zeros_like(low)


def places(x: Tensor, scale: Tensor, offset: Tensor, scheme: str) -> Tensor:
    """Where elements [..., groups, group_size] lie among `levels`, in steps."""
    start, zero = (offset, 0.0) if scheme == "affine" else (0.0, offset if scheme == "affine_zp" else 0.0)
    place = (x - (start[..., None] if isinstance(start, Tensor) else start)) / scale[..., None]
    place = torch.where(scale[..., None] > 0, place, 0.0) + (zero[..., None] if isinstance(zero, Tensor) else zero)
    inner = levels(scheme)[1 if scheme == "symmetric" else 0 :]
    return place.clamp(inner[0], inner[-1])


def _codes(place: Tensor, scheme: str, uniform: Tensor | None) -> Tensor:
    """The nearest level, the upper of equals, or with `uniform` a neighbour whose mean is the place."""
    level = levels(scheme)
    if uniform is None:
        return torch.bucketize(place, (level[1:] + level[:-1]) / 2, right=True)
    below = (torch.bucketize(place, level, right=True) - 1).clamp(max=14)
    return below + (uniform * (level[below + 1] - level[below]) < place - level[below])


def quantize_int4(
    x: Tensor,
    *,
    group_size: int = 128,
    dim: int = -1,
    scheme: str = "affine",
    rounding: str = "nearest",
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """packed, scales, offsets (zeros for the schemes that have none), as in the header of the family."""
    groups = _grouped(x.double(), dim, group_size)
    scale, offset = _fit(groups.amin(dim=-1), groups.amax(dim=-1), scheme, rounding)
    uniform = None
    if rounding == "stochastic":
        words = bits(seed, np.arange(x.numel(), dtype=np.uint64), stream=STREAM).astype(np.int64) >> 8
        uniform = _grouped(torch.from_numpy(words).view(x.shape).double() * 2.0**-24, dim, group_size)
    codes = _codes(places(groups, scale, offset, scheme), scheme, uniform).flatten(-2)
    codes[..., x.shape[dim] :] = 0
    packed = (codes[..., ::2] + 16 * codes[..., 1::2]).to(torch.uint8)
    return packed.movedim(-1, dim), scale.movedim(-1, dim), offset.movedim(-1, dim)


def dequantize_int4(
    packed: Tensor,
    scales: Tensor,
    offsets: Tensor | None,
    shape: tuple[int, ...],
    *,
    dim: int,
    group_size: int,
    scheme: str,
) -> Tensor:
    """The array in float64, differentiable in scales and offsets."""
    bytes_ = packed.movedim(dim, -1).long()
    codes = torch.stack([bytes_ % 16, bytes_ // 16], dim=-1).view(*scales.movedim(dim, -1).shape, group_size)
    scale = scales.double().movedim(dim, -1)[..., None]
    offset = torch.zeros_like(scale) if offsets is None else offsets.double().movedim(dim, -1)[..., None]
    number = levels(scheme)[codes]
    values = scale * (number - offset) if scheme == "affine_zp" else scale * number + offset
    return values.flatten(-2)[..., : shape[dim]].movedim(-1, dim)


def int4_project(
    packed: Tensor,
    scales: Tensor,
    offsets: Tensor | None,
    shape: tuple[int, ...],
    dim: int,
    group_size: int,
    scheme: str,
    g: Tensor,
) -> Tensor:
    """Pᵀ g for the decoded P [m, r] and g [..., m, n]."""
    basis = dequantize_int4(packed, scales, offsets, shape, dim=dim, group_size=group_size, scheme=scheme)
    return basis.mT @ g.double()


def int4_project_back(
    packed: Tensor,
    scales: Tensor,
    offsets: Tensor | None,
    shape: tuple[int, ...],
    dim: int,
    group_size: int,
    scheme: str,
    r: Tensor,
) -> Tensor:
    """P r for the decoded P [m, r] and r [..., r, n]."""
    basis = dequantize_int4(packed, scales, offsets, shape, dim=dim, group_size=group_size, scheme=scheme)
    return basis @ r.double()

"""Bases as packed 4-bit codes, and the products with them: by kernels, or by torch operations on other devices.

Determinism without kernels: D2 (within a stated bound; docs/numerics.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lowrank_core.memory.storage import packed_group
from lowrank_core.ops.int4_project.codes import dequantize_list, quantize_int4
from lowrank_core.ops.int4_project.matrix import Int4Matrix
from lowrank_core.ops.int4_project.products import int4_project, int4_project_back
from lowrank_core.ops.subspace_step.scratch import scratch
from lowrank_core.optim.devices import has_kernels
from lowrank_core.optim.dtypes import name_of
from lowrank_core.optim.parts.products import project, project_back

SCHEME = "affine"  # 16 even steps from the smallest to the largest entry of a group: no group of one sign is lost
_STEPS = 15


def packed(parts: Sequence[Tensor], rows: int, group_size: int) -> Int4Matrix:
    """The basis [rows, r] that codes, scales and offsets of a state stand for; they are kept, not copied."""
    codes, scales, offsets = parts
    shape = (rows, codes.shape[1])
    return Int4Matrix(codes, scales, offsets, shape, 0, packed_group(rows, group_size), SCHEME)


def pack(basis: Tensor, group_size: int) -> Int4Matrix:
    """`basis` [m, r] as codes in groups of rows, which is the layout that the products read fastest."""
    group = packed_group(basis.shape[0], group_size)
    if has_kernels(basis.device):
        return quantize_int4(basis, group_size=group, dim=0, scheme=SCHEME)
    return _pack(basis, group)


def unpack(q: Int4Matrix, dtype: torch.dtype) -> Tensor:
    """The dense basis."""
    return unpack_list([q], dtype)[0]


def unpack_list(codes: Sequence[Int4Matrix], dtype: torch.dtype) -> list[Tensor]:
    """The dense bases of all `codes`, which are on one device, in memory that lasts for one step where kernels run."""
    if codes and has_kernels(codes[0].packed.device):
        likes, count = [q.packed for q in codes], len(codes)
        out: list[Tensor] = scratch(likes, [(q.shape[0], q.shape[1]) for q in codes], [name_of(dtype)] * count)
        dequantize_list(codes, out)
        return out
    return [_unpack(q, dtype) for q in codes]


def _unpack(q: Int4Matrix, dtype: torch.dtype) -> Tensor:
    codes = torch.stack([q.packed & 15, q.packed >> 4], dim=1).flatten(0, 1).view(len(q.scales), q.group_size, -1)
    values = torch.addcmul(q.offsets.float()[:, None], codes.float(), q.scales.float()[:, None])  # type: ignore[union-attr]
    return values.flatten(0, 1)[: q.shape[0]].to(dtype)


def project_packed(grad: Tensor, q: Int4Matrix, side: str) -> Tensor:
    """`project` with the basis `q`."""
    if not has_kernels(grad.device):
        return project(grad, unpack(q, grad.dtype), side)
    low: Tensor = int4_project(q, grad if side == "left" else grad.mT)
    return low if side == "left" else low.mT


def project_back_packed(low: Tensor, q: Int4Matrix, side: str) -> Tensor:
    """`project_back` with the basis `q`."""
    if not has_kernels(low.device):
        return project_back(low, unpack(q, low.dtype), side)
    lifted: Tensor = int4_project_back(q, low if side == "left" else low.mT)
    return lifted if side == "left" else lifted.mT


def _pack(basis: Tensor, group: int) -> Int4Matrix:
    """Source: the rule of `quantize_int4`: the offset at or below the smallest entry, and a scale that reaches the
    largest one, both as they are stored; ties go to the upper code."""
    (rows, rank), groups = basis.shape, -(-basis.shape[0] // group)
    padding = basis[-1:].expand(groups * group - rows, rank)  # widens no group
    lines = torch.cat([basis, padding]).float().view(groups, group, rank)
    low, high = lines.amin(dim=1), lines.amax(dim=1)
    offsets = _below(low)
    scales = torch.where(low == high, 0.0, -_below((offsets.float() - high) / _STEPS))
    offsets = torch.where(low == high, low.bfloat16(), offsets)
    steps = torch.where(low == high, 0.0, (lines - offsets.float()[:, None]).transpose(0, 1) / scales.float())
    codes = (steps.transpose(0, 1) + 0.5).floor().clamp(0, _STEPS).to(torch.uint8).reshape(groups * group, rank)
    codes[rows:] = 0
    return Int4Matrix(codes[::2] | codes[1::2] << 4, scales.bfloat16(), offsets, (rows, rank), 0, group, SCHEME)


def _below(x: Tensor) -> Tensor:
    """The largest bfloat16 at or below `x`."""
    near = x.bfloat16()
    lower = torch.nextafter(near, torch.full_like(near, -math.inf))
    return torch.where(near.float() > x, lower, near)

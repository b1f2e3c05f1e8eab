"""What the tests of the family `int4_project` share: cases, local steps, and the bound of a rounding to codes."""

from __future__ import annotations

from typing import Any

import lowrank_core
import torch
from lowrank_core.reference import int4_project as reference
from testing import cases, tolerance
from torch import Tensor

SCHEMES = ("affine", "affine_zp", "symmetric", "nf4")
ROUNDINGS = ("nearest", "stochastic")
GROUPS = (32, 64, 96, 128, 256)
LENGTHS = sorted({1, 2, cases.PRIME, *(g + d for g in (cases.VECTOR, 32, 64, 128, 256) for d in (-1, 0, 1)), 700})
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def quantize(x: Any, **settings: Any) -> lowrank_core.Int4Matrix:
    q = lowrank_core.quantize_int4(x, **settings)
    assert isinstance(q, lowrank_core.Int4Matrix)
    return q


def arrays(q: lowrank_core.Int4Matrix) -> tuple[Any, ...]:
    """The arrays of the result."""
    return tuple(part for part in q[:3] if part is not None)


def settings(q: lowrank_core.Int4Matrix) -> dict[str, Any]:
    """What the reference has to be told besides the arrays and the shape."""
    return {"dim": q.dim, "group_size": q.group_size, "scheme": q.scheme}


def basis(m: int, r: int, scheme: str = "affine", *, dim: int = 0, group_size: int = 128) -> lowrank_core.Int4Matrix:
    return quantize(cases.gaussian(m, r, seed=5).float(), scheme=scheme, dim=dim, group_size=group_size)


def decoded(q: lowrank_core.Int4Matrix) -> Tensor:
    """By the reference, in float64."""
    return reference.dequantize_int4(
        *(None if p is None else torch.as_tensor(p) for p in q[:3]), q.shape, **settings(q)
    )


def each(part: Tensor, q: lowrank_core.Int4Matrix) -> Tensor:
    """A scale or offset for every element, float64."""
    return part.double().repeat_interleave(q.group_size, q.dim).narrow(q.dim, 0, q.shape[q.dim])


def codes(q: lowrank_core.Int4Matrix) -> Tensor:
    """One code an element, without the padding."""
    lines = q.packed.movedim(q.dim, -1)
    pairs = torch.stack([lines % 16, lines // 16], dim=-1).flatten(-2)
    return pairs[..., : q.shape[q.dim]].movedim(-1, q.dim)


def gap(x: Tensor, q: lowrank_core.Int4Matrix) -> Tensor:
    """The distance of the two decoded neighbours of each element, in its group."""
    scale = each(q.scales, q)
    if q.scheme != "nf4":
        return scale
    level = reference.levels("nf4")
    place = torch.where(scale > 0, x.double() / scale, 0.0)
    below = (torch.bucketize(place, level, right=True) - 1).clamp(0, 14)
    return scale * (level[below + 1] - level[below])


def slack(x: Tensor, q: lowrank_core.Int4Matrix) -> Tensor:
    """What rounding may add to half a gap: of the place (four roundings) and of the decoded value; where the group has
    no range, of an affine constant to bfloat16; and the smallest subnormal, where the scale is one itself."""
    scale = each(q.scales, q)
    float32 = 6 * tolerance.UNIT[torch.float32] * (x.double().abs() + 16 * scale)
    constant = torch.where(scale == 0, tolerance.UNIT[torch.bfloat16] * x.double().abs(), 0.0)
    return float32 + constant + 16 * 2.0**-149


def assert_near(x: Tensor, q: lowrank_core.Int4Matrix, gaps: float = 0.5) -> None:
    """No decoded element is further than `gaps` local steps from its original."""
    assert bool(((decoded(q) - x.double()).abs() <= gaps * gap(x, q) + slack(x, q)).all())

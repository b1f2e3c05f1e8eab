"""A weight with a low-rank product added, rounded once."""

from __future__ import annotations

import torch
from torch import Tensor


def with_product(weight: Tensor, b: Tensor, a: Tensor, scale: float) -> Tensor:
    """[m, n]: weight + scale b a, formed in float32 (float64 where one of them is) and not rounded to their dtypes."""
    wide = torch.promote_types(torch.promote_types(weight.dtype, b.dtype), torch.float32)
    return torch.addmm(weight.to(wide), b.to(wide), a.to(wide), alpha=scale)

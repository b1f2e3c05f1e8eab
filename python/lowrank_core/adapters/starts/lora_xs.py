"""LoRA-XS: frozen singular vectors of the weight and a trained square matrix that starts almost at zero."""

from __future__ import annotations

import torch
from torch import nn

from lowrank_core.adapters.starts.start import Factors, Settings, Target


def lora_xs(model: nn.Module, targets: list[Target], settings: Settings) -> list[Factors]:
    """W0 ≈ U S Vᵀ: B = U S, A = Vᵀ, and R of normal numbers with the standard deviation `std`.

    Source: Bałazy et al. 2024 (arXiv:2405.17604), section 3.
    """
    named, ranks = [(target.name, target.weight.like) for target in targets], [target.pair.rank for target in targets]
    found = settings.search.leading("model", "weights", named, ranks, lambda i: targets[i].weight.matrix)
    draw = torch.Generator().manual_seed(settings.search.seed)
    squares = [settings.std * torch.randn(s.numel(), s.numel(), generator=draw, dtype=s.dtype) for _, s, _ in found]
    return [Factors(u * s, vh, square) for (u, s, vh), square in zip(found, squares, strict=True)]

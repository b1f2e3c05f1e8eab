"""LoRA-SB: frozen orthonormal factors and a trained square matrix that starts with the first step of full training."""

from __future__ import annotations

from torch import nn

from lowrank_core.adapters.starts.gradients import summed_gradients
from lowrank_core.adapters.starts.start import Factors, Settings, Target


def lora_sb(model: nn.Module, targets: list[Target], settings: Settings) -> list[Factors]:
    """-η sign(mean gradient) ≈ U S Vᵀ: B = U, R = S / c, A = Vᵀ for the scale c.

    Source: Ponkshe et al. 2024 (arXiv:2411.19557), algorithm 1, in which sign(G) is Adam's first step.
    """
    factors: dict[Target, Factors] = {}
    for part, gradients in summed_gradients(model, targets, settings):
        named = [(t.name, gradient.sign().mul_(-settings.eta)) for t, gradient in zip(part, gradients, strict=True)]
        found = settings.search.leading("model", "gradients", named, [target.pair.rank for target in part])
        for target, (u, s, vh) in zip(part, found, strict=True):
            factors[target] = Factors(u, vh, (s / target.pair.scale).diag())
    return [factors[target] for target in targets]

"""LoRA-GA: the first step of the factors follows the gradient of the full weight."""

from __future__ import annotations

from torch import nn

from lowrank_core.adapters.starts.gradients import summed_gradients
from lowrank_core.adapters.starts.start import Factors, Settings, Target


def lora_ga(model: nn.Module, targets: list[Target], settings: Settings) -> list[Factors]:
    """Mean gradient at W0 ≈ U S Vᵀ: A = κ times the first r rows of Vᵀ, B = κ times columns r to 2r of U.

    κ = m^(1/4) / √γ for a weight of m outputs: the authors' "ArB2r" and scale "stable". PEFT's port differs: it
    multiplies B by the singular values and leaves A without κ.

    Source: Wang, Yu, Li 2024 (arXiv:2407.05000), theorems 3.1 and 3.2.
    """
    factors: dict[Target, Factors] = {}
    for part, gradients in summed_gradients(model, targets, settings):
        named = [(target.name, gradient) for target, gradient in zip(part, gradients, strict=True)]
        found = settings.search.leading("model", "gradients", named, [2 * target.pair.rank for target in part])
        for target, (u, _, vh) in zip(part, found, strict=True):
            r = target.pair.rank
            size = u.shape[0] ** 0.25 / settings.gamma**0.5
            factors[target] = Factors(size * u[:, r:], size * vh[:r])
    return [factors[target] for target in targets]

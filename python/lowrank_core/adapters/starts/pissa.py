"""PiSSA: the leading singular triplets of the weight are trained, the rest of it stays."""

from __future__ import annotations

import math

from torch import nn

from lowrank_core.adapters.starts.start import Factors, Settings, Target


def pissa(model: nn.Module, targets: list[Target], settings: Settings) -> list[Factors]:
    """W0 ≈ U S Vᵀ: B = U √(S / c), A = √(S / c) Vᵀ for the scale c (its sign goes to B).

    Source: Meng, Wang, Zhang 2024 (arXiv:2404.02948), eq. 2 and 3; the scale as in PEFT.
    """
    named = [(target.name, target.weight.matrix) for target in targets]
    found = settings.search.leading("model", "weights", named, [target.pair.rank for target in targets])
    factors = []
    for target, (u, s, vh) in zip(targets, found, strict=True):
        root = (s / abs(target.pair.scale)).sqrt()
        factors.append(Factors(u * (root * math.copysign(1.0, target.pair.scale)), root.unsqueeze(-1) * vh))
    return factors

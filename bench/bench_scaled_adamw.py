"""A step of ScaledAdamW against PEFT's `create_riemannian_optimizer(model, torch.optim.AdamW)` with the same pairs.

Times are of whole `step()` calls. PEFT scales `.grad` in place, so each call gets copies of the gradients that were
made before. The error is that of the change of all weights in three steps, as Frobenius norms, to PEFT's optimizer in
float64. AdamW without any scaling is there for its time alone.

    python bench/bench_scaled_adamw.py [--threads 2] [--rounds 25]
"""

from __future__ import annotations

import torch
from _harness import peer
from _pairs import KEYS, OURS, measure, trained
from lowrank_core.adapters import ScaledAdamW
from torch import nn

REG = 1e-2
PEFT = "PEFT"


def _peft(model: nn.Module) -> torch.optim.Optimizer:
    found: torch.optim.Optimizer = peer("peft.optimizers").create_riemannian_optimizer(
        model, torch.optim.AdamW, reg=REG, **KEYS
    )
    return found


RIVALS = {
    PEFT: lambda model: _peft(model).step,
    "AdamW unscaled": lambda model: torch.optim.AdamW(trained(model), **KEYS).step,
    OURS: lambda model: ScaledAdamW(model, reg=REG, **KEYS).step,
}

if __name__ == "__main__":
    measure("bench_scaled_adamw", __doc__, RIVALS, PEFT, (PEFT, OURS))

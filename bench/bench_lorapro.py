"""A step of LoRAProAdamW against LoRA-Pro's formulas in plain torch, pair by pair, before torch's AdamW.

Times are of whole `step()` calls. The plain statement solves Sylvester's equation by two symmetric eigenproblems of a
pair in float64, as ours does, and writes its directions into `.grad`; torch's AdamW then takes them. The error is that
of the change of all weights in three steps, as Frobenius norms, to the same statement on a model in float64. AdamW on
the factors without any directions is there for its time alone.

    python bench/bench_lorapro.py [--threads 2] [--rounds 25]
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from _pairs import KEYS, OURS, measure, trained
from lowrank_core.adapters import LoRAProAdamW, Pair, find_pairs
from torch import Tensor, nn

RIDGE = 2.0**-23  # one for all dtypes, so that the statement in float64 takes the same steps
STATED = "torch, pair by pair"


def directions(pair: Pair) -> tuple[Tensor, Tensor]:
    """hA and hB of a pair by theorems 2.1 and 2.3 of arXiv:2407.18242, float64."""
    assert pair.a.grad is not None and pair.b.grad is not None
    a, b, ga, gb = (x.detach().double() for x in (pair.a, pair.b, pair.a.grad, pair.b.grad))
    eye, square = torch.eye(len(a), dtype=torch.float64), pair.scale**2
    c, d = b.mT @ b, a @ a.mT
    c, d = c + RIDGE * torch.trace(c) * eye, d + RIDGE * torch.trace(d) * eye
    direct = torch.linalg.solve(c, ga) / square
    (left, p), (right, q) = torch.linalg.eigh(c), torch.linalg.eigh(d)
    x = -p @ ((p.mT @ (direct @ a.mT) @ q) / (left[:, None] + right)) @ q.mT
    outside = gb - b @ torch.linalg.solve(c, b.mT @ gb)
    return direct + x @ a, torch.linalg.solve(d, outside, left=False) / square - b @ x


def _stated(model: nn.Module) -> Callable[[], object]:
    pairs, optimizer = find_pairs(model), torch.optim.AdamW(trained(model), **KEYS)

    def step() -> None:
        for pair in pairs:
            for p, direction in zip((pair.a, pair.b), directions(pair), strict=True):
                p.grad.copy_(direction)  # type: ignore[union-attr]
        optimizer.step()

    return step


RIVALS = {
    STATED: _stated,
    "AdamW on factors": lambda model: torch.optim.AdamW(trained(model), **KEYS).step,
    OURS: lambda model: LoRAProAdamW(model, ridge=RIDGE, **KEYS).step,
}

if __name__ == "__main__":
    measure("bench_lorapro", __doc__, RIVALS, STATED, (STATED, OURS))

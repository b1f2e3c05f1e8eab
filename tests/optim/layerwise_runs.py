"""Training with and without `fused_backward`, on the small model of optim_cases.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lowrank_core.memory.gradients import Way
from lowrank_core.optim import LowRankOptimizer
from lowrank_core.optim.layerwise.held import way_of
from optim_cases import CASES, Case, draw, loss_of
from torch import Tensor, nn

Micro = Callable[[nn.Module, int], Tensor]  # a model and the number of a batch: its loss


def way(case: Case) -> Way:
    """How a gradient of the method of `case` is taken where no subspace is due."""
    optimizer = case.make([nn.Parameter(draw(6, 8))])
    parts = optimizer.parts(optimizer.param_groups[0], torch.zeros(1))
    return way_of(parts, projected=True, due=False)


def steps_inside(case: Case) -> bool:
    """True if the method of `case` steps inside backward."""
    return way(case) is Way.AT_ONCE


def keys(case: Case) -> dict[str, Any]:
    """What a method that steps inside backward has to say."""
    return {"nonfinite": "raise"} if steps_inside(case) else {}


every_accumulating = pytest.mark.parametrize(
    "case", [case for case in CASES if not steps_inside(case)], ids=lambda case: case.name
)
every_stepping_inside = pytest.mark.parametrize(
    "case", [case for case in CASES if steps_inside(case)], ids=lambda case: case.name
)


def backward(model: nn.Module, step: int, passes: int, micro: Micro = loss_of) -> float:
    """`passes` backward passes, of the mean of as many batches; returns it."""
    loss = 0.0
    for number in range(passes * step, passes * (step + 1)):
        part = micro(model, number) / passes
        part.backward()
        loss += part.item()
    return loss


def train(
    model: nn.Module,
    optimizer: LowRankOptimizer,
    steps: int,
    passes: int = 1,
    between: Callable[[int], object] = lambda step: None,
    micro: Micro = loss_of,
) -> list[float]:
    """The loss of each step. `between` is called before each of them."""
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        losses.append(backward(model, step, passes, micro))
        between(step)
        optimizer.step()
    return losses


def taken(model: nn.Module) -> bool:
    """True if no gradient is left but the flag."""
    left = [param.grad for param in model.parameters() if param.grad is not None]
    return len(left) <= 1 and all(grad.is_sparse and grad._nnz() == 1 for grad in left)


def apart(model: nn.Module, other: nn.Module) -> float:
    """The largest difference of two models' weights, each against the largest entry of its weight."""
    pairs = [(p.detach(), q.detach()) for p, q in zip(model.parameters(), other.parameters(), strict=True) if p.numel()]
    return max(float((p - q).abs().max() / q.abs().max()) for p, q in pairs)


def shake(model: nn.Module, seed: int, passes: int) -> None:
    """Adds to each gradient what adding up `passes` of them in another order may: a rounding for each addition."""
    for i, param in enumerate(model.parameters()):
        if param.grad is not None and param.numel():
            size = (passes + max(param.shape, default=1)) * torch.finfo(param.dtype).eps / 2 * param.grad.abs().max()
            signs = torch.sign(draw(param.numel(), seed=1000 * seed + i)).to(param.dtype).view(param.shape)
            param.grad.add_(signs * size)

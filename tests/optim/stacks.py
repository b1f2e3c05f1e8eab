"""Stacks of matrices and the same matrices as parameters of their own, which train alike to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lowrank_core.optim import LowRankOptimizer
from optim_cases import Case, draw
from torch import Tensor, nn

SHAPES: dict[str, tuple[int, ...]] = {
    "first": (12, 20),
    "up": (4, 20, 12),  # tall
    "down": (4, 12, 20),  # wide
    "last": (12, 12),
    "gain": (12,),
}
STACKS = ("up", "down")
IDLE = 2  # an expert without a token in the first steps: its part of the gradient is zero
IDLE_STEPS = 4

Named = dict[str, nn.Parameter]


def stacked(dtype: torch.dtype = torch.float32) -> Named:
    return {name: nn.Parameter(draw(*shape, seed=i).to(dtype)) for i, (name, shape) in enumerate(SHAPES.items())}


def apart(named: Named) -> Named:
    """Copies, with every matrix of a stack as a parameter of its own."""
    found = {}
    for name, param in named.items():
        if name in STACKS:
            found |= {f"{name}[{i}]": nn.Parameter(part.detach().clone()) for i, part in enumerate(param)}
        else:
            found[name] = nn.Parameter(param.detach().clone())
    return found


def made(
    case: Case, named: Named, order: Iterable[Iterable[str]] = (("first",), STACKS, ("last", "gain")), **keys: Any
) -> LowRankOptimizer:
    """An optimizer with a group for each entry of `order`; those of stacks, or of their matrices, are one group."""
    groups = []
    for names in order:
        params = [(name, param) for name, param in named.items() if name.partition("[")[0] in names]
        groups.append({"params": params} | ({"stacked": True} if set(names) & set(STACKS) & named.keys() else {}))
    return case.make([{**group, "rank": case.keys.get("rank", 4)} for group in groups], **keys)


def gradients(step: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Those of the stacked parameters."""
    found = {name: draw(*shape, seed=100 * (step + 1) + i) for i, (name, shape) in enumerate(SHAPES.items())}
    for name in STACKS:
        if step < IDLE_STEPS:
            found[name][IDLE] = 0
    return {name: grad.to(dtype) for name, grad in found.items()}


def give(named: Named, grads: dict[str, Tensor]) -> None:
    """Makes `grads` the gradients of stacks, or of their matrices."""
    for name, param in named.items():
        stack, _, number = name.partition("[")
        grad = grads[stack]
        param.grad = grad.clone() if not number else grad[int(number.rstrip("]"))].clone()


def train(
    named: Named, optimizer: LowRankOptimizer, steps: Iterable[int], grads: Callable[[int], dict[str, Tensor]]
) -> None:
    for step in steps:
        give(named, grads(step))
        optimizer.step()


def weights_of(named: Named) -> dict[str, Tensor]:
    """By the names of the matrices."""
    return {name: param.detach() for name, param in apart(named).items()}


def states_of(named: Named, optimizer: LowRankOptimizer) -> dict[str, dict[str, Any]]:
    """By the names of the matrices; what `state_dict` says."""
    saved = optimizer.state_dict()
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    found: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(names):
        for key, value in saved["state"].get(number, {}).items():
            if name in STACKS:
                expert, _, own = key.partition(".")
                found.setdefault(f"{name}[{expert}]", {})[own] = value
            else:
                found.setdefault(name, {})[key] = value
    return found

"""Trajectories of GaLoreAdamW: 60 steps with gradients that are the same in every run."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

STEPS, SEEN = 60, (1, 20, 60)
LEFT, RIGHT, SQUARE, RAGGED, CONV, VECTOR = (24, 40), (40, 24), (32, 32), (37, 53), (16, 4, 3, 3), (29,)
MIXED = (LEFT, RIGHT, RAGGED, CONV, VECTOR)
STACKS = ((3, *LEFT), (4, *RAGGED), (2, *RIGHT))  # matrices of one parameter, as the experts of a mixture
MANY = ((12, 20), (20, 12), (9, 17)) * 7  # more than are searched together
BFLOAT16, INT8 = {"moment_dtype": "bfloat16"}, {"moment_dtype": "int8"}
HALF = torch.bfloat16

# Name, shapes, dtype of the weights, keys of the optimizer.
RUNS: tuple[tuple[str, tuple[tuple[int, ...], ...], torch.dtype, dict[str, Any]], ...] = (
    ("left", (LEFT,), torch.float32, {}),
    ("right", (RIGHT,), torch.float32, {}),
    ("square", (SQUARE,), torch.float32, {}),
    ("ragged", (RAGGED, (53, 37)), torch.float32, {}),
    ("full", (LEFT, RAGGED), torch.float32, {"proj_type": "full"}),
    ("full rotate", (LEFT, RAGGED), torch.float32, {"proj_type": "full", "moments": "rotate"}),
    ("full int8", (LEFT, RAGGED), torch.float32, {"proj_type": "full", **INT8}),
    ("reverse", MIXED, torch.float32, {"proj_type": "reverse_std"}),
    ("many", MANY, torch.float32, {}),
    ("mixed", MIXED, torch.float32, {}),
    ("mixed rotate", MIXED, torch.float32, {"moments": "rotate"}),
    ("mixed maximize", MIXED, torch.float32, {"maximize": True}),
    ("mixed bfloat16 moments", MIXED, torch.float32, BFLOAT16),
    ("mixed bfloat16 moments rotate", MIXED, torch.float32, {"moments": "rotate", **BFLOAT16}),
    ("mixed int8 moments", MIXED, torch.float32, INT8),
    ("mixed int8 moments rotate", MIXED, torch.float32, {"moments": "rotate", **INT8}),
    ("mixed float64", MIXED, torch.float64, {}),
    ("mixed float64 rotate", MIXED, torch.float64, {"moments": "rotate"}),
    ("mixed float64 int8 moments", MIXED, torch.float64, INT8),
    ("mixed float16", MIXED, torch.float16, {}),
    ("mixed bfloat16", MIXED, HALF, {}),
    ("mixed bfloat16 rotate", MIXED, HALF, {"moments": "rotate"}),
    ("mixed bfloat16 stochastic", MIXED, HALF, {"rounding": "stochastic"}),
    ("mixed bfloat16 float32 moments", MIXED, HALF, {"moment_dtype": "float32"}),
    ("mixed bfloat16 int8 moments stochastic", MIXED, HALF, {"rounding": "stochastic", **INT8}),
    ("full bfloat16 stochastic", (LEFT, RAGGED), HALF, {"proj_type": "full", "rounding": "stochastic"}),
    ("plain", MIXED, torch.float32, {"rank": None}),
    ("plain int8 moments", MIXED, torch.float32, {"rank": None, **INT8}),
    ("stacked", STACKS, torch.float32, {"stacked": True}),
    ("stacked int8 moments rotate", STACKS, torch.float32, {"stacked": True, "moments": "rotate", **INT8}),
    ("stacked bfloat16 stochastic", STACKS, HALF, {"stacked": True, "rounding": "stochastic"}),
    ("stacked plain", STACKS, torch.float32, {"stacked": True, "rank": None}),
    ("forced", (LEFT, VECTOR), torch.float32, {"rank": 24, "force_projection": True}),
)


def calls() -> Iterator[tuple[str, str, Any]]:
    """(operator, what, function) of every trajectory; none where the package has no GaLoreAdamW."""
    try:
        from lowrank_core.optim import GaLoreAdamW
    except ImportError:
        return
    for name, shapes, dtype, keys in RUNS:
        yield "GaLoreAdamW", name, partial(trajectory, GaLoreAdamW, shapes, dtype, keys)


def trajectory(kind: Any, shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype, keys: dict[str, Any]) -> Any:
    """The weights after the steps `SEEN`; the state shows in them, and its layout may change."""
    draw = torch.Generator().manual_seed(len(shapes))
    weights = [torch.nn.Parameter(normal(shape, draw).mul_(0.1).to(dtype)) for shape in shapes]
    targets = [normal(shape, draw) for shape in shapes]
    options = {"lr": 0.02, "rank": 6, "update_proj_gap": 7, "weight_decay": 0.05, "seed": 3, **keys}
    optimizer, seen = kind(weights, **options), []
    for step in range(1, STEPS + 1):
        for weight, target in zip(weights, targets, strict=True):
            # Of a trajectory's own weights: what differs once differs from then on.
            weight.grad = (weight.detach().double() - target + 0.3 * normal(weight.shape, draw)).to(dtype)
        optimizer.step()
        if step in SEEN:
            seen.append([weight.detach().clone() for weight in weights])
    return seen


def normal(shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=draw, dtype=torch.float64)

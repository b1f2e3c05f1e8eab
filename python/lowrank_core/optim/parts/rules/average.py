"""A running mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lowrank_core.memory.storage import Layout, lion_fields
from lowrank_core.optim.parts.rules import Direction, Moments, Turn, check_keys


@dataclass(frozen=True)
class Average:
    """exp_avg <- b1 exp_avg + (1 - b1) g, which is the direction. Its bias is not corrected."""

    beta1: float = 0.9

    def __post_init__(self) -> None:
        check_keys("Average", (self.beta1, 0.0), 0.0)

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return lion_fields(shape)

    def update(self, grad: Tensor, moments: Moments, step: float | Tensor) -> Direction:
        return Direction(moments["exp_avg"].lerp_(grad, 1 - self.beta1))

    def turned(self, moments: Moments, turn: Turn, step: float | Tensor) -> Moments:
        """M' = T M."""
        return {"exp_avg": turn.linear(moments["exp_avg"])}

    def unbias(self, step: float | Tensor) -> float | Tensor:
        return 1.0

    def kernel(self) -> dict[str, Any]:
        raise NotImplementedError("Average: no compiled kernel has this rule")

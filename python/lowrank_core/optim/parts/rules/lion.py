"""Lion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lowrank_core.memory.storage import Layout, lion_fields
from lowrank_core.optim.parts.rules import Direction, Moments, Turn, check_keys


@dataclass(frozen=True)
class Lion:
    """The sign of a mean that looks ahead; one moment.

    direction = sign(b1 exp_avg + (1 - b1) g);  exp_avg <- b2 exp_avg + (1 - b2) g

    Source: Chen et al. 2023 (Lion, arXiv:2302.06675), algorithm 2.
    """

    betas: tuple[float, float] = (0.9, 0.99)

    def __post_init__(self) -> None:
        check_keys("Lion", self.betas, 0.0)

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return lion_fields(shape)

    def update(self, grad: Tensor, moments: Moments, step: float | Tensor) -> Direction:
        beta1, beta2 = self.betas
        exp_avg = moments["exp_avg"]
        direction = (beta1 * exp_avg).add_(grad, alpha=1 - beta1).sign_()
        exp_avg.mul_(beta2).add_(grad, alpha=1 - beta2)
        return Direction(direction)

    def turned(self, moments: Moments, turn: Turn, step: float | Tensor) -> Moments:
        """M' = T M."""
        return {"exp_avg": turn.linear(moments["exp_avg"])}

    def unbias(self, step: float | Tensor) -> float | Tensor:
        return 1.0

    def kernel(self) -> dict[str, Any]:
        return {"rule": "lion", "betas": self.betas, "eps": 0.0}

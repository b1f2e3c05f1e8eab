"""AdaBelief."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lowrank_core.memory.storage import Layout, adabelief_fields
from lowrank_core.optim.parts.rules import Direction, Moments, Turn
from lowrank_core.optim.parts.rules.adam import Adam


@dataclass(frozen=True)
class AdaBelief(Adam):
    """Adam with the variance of the gradient around its mean in place of its square.

    exp_avg <- b1 exp_avg + (1 - b1) g;  exp_avg_var <- b2 exp_avg_var + (1 - b2) (g - exp_avg)^2 + eps
    direction = [exp_avg / (1 - b1^t)] / (sqrt(exp_avg_var / (1 - b2^t)) + eps)

    Source: Zhuang et al. 2020 (AdaBelief, arXiv:2010.07468), algorithm 2: eps stands in both places.
    """

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return adabelief_fields(shape)

    def update(self, grad: Tensor, moments: Moments, step: float | Tensor) -> Direction:
        beta1, beta2 = self.betas
        exp_avg, exp_avg_var = moments["exp_avg"], moments["exp_avg_var"]
        exp_avg.lerp_(grad, 1 - beta1)
        apart = grad - exp_avg
        exp_avg_var.mul_(beta2).addcmul_(apart, apart, value=1 - beta2).add_(self.eps)
        correction, root = self.corrections(step)
        denominator = exp_avg_var.sqrt().div_(root).add_(self.eps)
        return Direction(exp_avg, denominator, correction, self.unbias(step))

    def turned(self, moments: Moments, turn: Turn, step: float | Tensor) -> Moments:
        """M' = T M; the variance travels by squares, V' = (T o T) V, and is never negative."""
        return {
            "exp_avg": turn.linear(moments["exp_avg"]),
            "exp_avg_var": turn.squared(moments["exp_avg_var"]),
        }

    def kernel(self) -> dict[str, Any]:
        return {**super().kernel(), "rule": "adabelief"}

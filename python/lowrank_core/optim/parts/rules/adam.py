"""Adam."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lowrank_core.memory.storage import Layout, adam_fields
from lowrank_core.optim.parts.rules import Direction, Moments, Turn, check_keys


@dataclass(frozen=True)
class Adam:
    """Adam with bias correction, eps outside it (torch's form).

    exp_avg <- b1 exp_avg + (1 - b1) g;  exp_avg_sq <- b2 exp_avg_sq + (1 - b2) g^2
    direction = [exp_avg / (1 - b1^t)] / (sqrt(exp_avg_sq / (1 - b2^t)) + eps)

    Source: Kingma, Ba 2015 (arXiv:1412.6980), algorithm 1. The operations and their order are those of
      torch.optim.AdamW's loop over single tensors, so that the results agree to the bit.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_keys("Adam", self.betas, self.eps)

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return adam_fields(shape)

    def update(self, grad: Tensor, moments: Moments, step: float | Tensor) -> Direction:
        exp_avg, exp_avg_sq = self.advance_(grad, moments)
        correction, root = self.corrections(step)
        denominator = exp_avg_sq.sqrt().div_(root).add_(self.eps)
        return Direction(exp_avg, denominator, correction, self.unbias(step))

    def advance_(self, grad: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
        """Both moments, moved on by `grad` in place."""
        beta1, beta2 = self.betas
        exp_avg, exp_avg_sq = moments["exp_avg"], moments["exp_avg_sq"]
        exp_avg.lerp_(grad, 1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        return exp_avg, exp_avg_sq

    def turned(self, moments: Moments, turn: Turn, step: float | Tensor) -> Moments:
        """First moment: M' = T M. Second: the variance travels by squares, the mean by T.

        V' = c2 |(T o T)(V / c2 - (M / c1)^2) + (M' / c1)^2| with c = 1 - beta^t, never negative.

        Source: Robert et al. 2024 (LDAdam, arXiv:2410.16103), the form of its code.
        """
        correction1, correction2 = (1 - beta**step for beta in self.betas)
        exp_avg = turn.linear(moments["exp_avg"])
        variance = moments["exp_avg_sq"] / correction2 - (moments["exp_avg"] / correction1).square_()
        exp_avg_sq = turn.squared(variance).add_((exp_avg / correction1).square_()).abs_().mul_(correction2)
        return {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}

    def corrections(self, step: Any) -> tuple[Any, Any]:
        """1 - beta1^t, and the root of 1 - beta2^t; tensors if the step count is one."""
        beta1, beta2 = self.betas
        return 1 - beta1**step, (1 - beta2**step) ** 0.5

    def unbias(self, step: float | Tensor) -> float | Tensor:
        correction, root = self.corrections(step)
        unbias: float | Tensor = root / correction
        return unbias

    def kernel(self) -> dict[str, Any]:
        return {"rule": "adam", "betas": self.betas, "eps": self.eps}

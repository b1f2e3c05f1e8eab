"""Update rules: what is done with a gradient, whole or projected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from lowrank_core.checks import is_number, require
from lowrank_core.memory.storage import Layout, adam_fields

Moments = dict[str, Tensor]


class Turn(Protocol):
    """A change of subspace, T = P_new^T P_old, as it acts on tensors that live in the subspace."""

    def linear(self, low: Tensor) -> Tensor:
        """X -> T X, X T^T or both, by side."""
        ...

    def squared(self, low: Tensor) -> Tensor:
        """The same with T squared elementwise: how variances travel."""
        ...

    def overlap(self) -> Tensor:
        """0-d, in [0, 1]: the mean squared cosine between the subspaces."""
        ...


class Direction(NamedTuple):
    """numerator / (denominator * correction), which is subtracted from a weight once per unit of lr.

    It is kept as a fraction so that the plain path rounds exactly as torch's own AdamW does.
    """

    numerator: Tensor
    denominator: Tensor | None = None  # None: the numerator is the direction, and there is no correction
    correction: float | Tensor = 1.0  # a 0-d tensor if the step count is one
    unbias: float | Tensor = 1.0  # the factor of all bias corrections; without it the direction is uncorrected

    def dense(self, scale: float = 1.0) -> Tensor:
        """`scale` times the value, in storage of its own."""
        if self.denominator is None:
            return self.numerator * scale
        return (self.numerator / self.denominator).mul_(scale / self.correction)

    def reshaped(self, shape: torch.Size) -> Direction:
        """The same, in `shape`."""
        denominator = None if self.denominator is None else self.denominator.reshape(shape)
        return self._replace(numerator=self.numerator.reshape(shape), denominator=denominator)

    def subtract_from_(self, target: Tensor, lr: float | Tensor) -> None:
        """target <- target - lr * self."""
        if isinstance(lr, Tensor):
            target.sub_(self.dense() * lr.to(target.dtype))
        elif self.denominator is None:
            target.sub_(self.numerator, alpha=lr)
        elif isinstance(self.correction, Tensor):  # as `value` it would be read, which waits for the device
            target.addcdiv_(self.numerator, self.denominator * self.correction, value=-lr)
        else:
            target.addcdiv_(self.numerator, self.denominator, value=-(lr / self.correction))


class Rule(Protocol):
    """Turns a gradient into a direction; knows no lr, no decay and no parameter."""

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """What it keeps for a gradient of `shape`; a codec stores the fields of dtype `WORK`."""
        ...

    def update(self, grad: Tensor, moments: Moments, step: float | Tensor) -> Direction:
        """Advances `moments` in place by `grad` and returns the direction of step number `step` (from 1)."""
        ...

    def turned(self, moments: Moments, turn: Turn, step: int) -> Moments:
        """`moments` after `step` >= 1 finished steps, expressed in a new basis."""
        ...

    def unbias(self, step: float | Tensor) -> float | Tensor:
        """The factor of all bias corrections in step number `step`."""
        ...

    def kernel(self) -> dict[str, Any]:
        """Its arguments of `subspace_step_`, where a kernel has it."""
        ...


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
        pair = isinstance(self.betas, (tuple, list)) and len(self.betas) == 2
        require(
            pair and all(is_number(b, 0.0) and b < 1 for b in self.betas),
            "Adam", "betas", "be two numbers in [0, 1)", self.betas,
        )  # fmt: skip
        require(is_number(self.eps, 0.0), "Adam", "eps", "be a number >= 0", self.eps)

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return adam_fields(shape)

    def update(self, grad: Tensor, moments: Moments, step: float | Tensor) -> Direction:
        beta1, beta2 = self.betas
        exp_avg, exp_avg_sq = moments["exp_avg"], moments["exp_avg_sq"]
        exp_avg.lerp_(grad, 1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        correction, root = self.corrections(step)
        denominator = exp_avg_sq.sqrt().div_(root).add_(self.eps)
        return Direction(exp_avg, denominator, correction, self.unbias(step))

    def turned(self, moments: Moments, turn: Turn, step: int) -> Moments:
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

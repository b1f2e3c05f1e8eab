"""Flora's residual: Adafactor's step along a momentum that a random sketch holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

from torch import Tensor

from lowrank_core.memory.geometry import Geometry
from lowrank_core.memory.storage import Layout, whole_means
from lowrank_core.optim.parts.residuals import Seen
from lowrank_core.optim.parts.residuals.drop import Scaled
from lowrank_core.optim.parts.rules import Direction, Moments
from lowrank_core.optim.parts.rules.adafactor import THRESHOLD, Adafactor, clipped
from lowrank_core.optim.slots import State


@dataclass(frozen=True)
class SketchedMomentum(Scaled):
    """x = G over the root of Adafactor's second moment enters the sketch; the step is (1 - b1) x + b1 P C.

    C is the running mean of P^T x before this step; what the rule has is that after it, C' = b1 C + (1 - b1) P^T x, so
    that b1 P C = P (C' - (1 - b1) P^T x). The step is clipped to a root mean square of 1.

    Source: Hao, Cao, Mou 2024 (Flora, arXiv:2402.03293), algorithm 2, with Adafactor as its base.
    """

    takes_sketches: ClassVar[bool] = True

    beta1: float = 0.9
    adafactor: Adafactor = field(default_factory=Adafactor)

    def layout(self, where: Geometry) -> Layout:
        return whole_means(where)

    def enter(self, grad: Tensor, state: State) -> Tensor:
        means = {key: mean.clone() for key, mean in _means(state).items()}
        self.adafactor.advance(grad, means, _count(state))
        return self.adafactor.normalized(grad, means).to(grad.dtype)

    def complete(self, seen: Seen, state: State) -> Direction:
        self.adafactor.advance(cast(Tensor, seen.whole), _means(state), _count(state))
        before = seen.direction.dense().sub_(seen.low, alpha=1 - self.beta1)
        return Direction(clipped(seen.subspace.up(before).add_(seen.grad, alpha=1 - self.beta1)))

    def means(self, states: list[State]) -> tuple[list[Tensor], list[Tensor]]:
        """Adafactor's means over rows, and those over columns, of a list of weights."""
        rows, cols = ([state[f"residual.{key}"] for state in states] for key in _MEANS)
        return rows, cols

    def kernel(self) -> dict[str, Any]:
        """Its arguments of `sketched_list`."""
        return {"beta1": self.beta1, "eps": self.adafactor.eps, "threshold": THRESHOLD}


_MEANS = ("exp_avg_sq_row", "exp_avg_sq_col")


def _means(state: State) -> Moments:
    return {key: state[f"residual.{key}"] for key in _MEANS}


def _count(state: State) -> Tensor:
    """The number of the step, in double for its powers. A search asks before the first one is counted."""
    count: Tensor = state["step"].double().clamp(min=1)
    return count

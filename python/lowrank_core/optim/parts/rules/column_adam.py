"""Adam whose bias correction counts the steps of each direction of its subspace by itself."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lowrank_core.memory.geometry import Geometry
from lowrank_core.memory.storage import Layout, adam_fields, count_fields
from lowrank_core.optim.parts.rules import Direction, Moments, Turn
from lowrank_core.optim.parts.rules.adam import Adam
from lowrank_core.optim.parts.subspaces.indices import IndexTurn


@dataclass(frozen=True)
class ColumnAdam(Adam):
    """`Adam` with t_j instead of t: how many steps atom j has been in the subspace without a break.

    A direction that enters has moments of zero. Corrected by the count of the run, its first step would be
    (1 - b1) / sqrt(1 - b2) of an entry, 3.2 for (0.9, 0.999); by its own count it is 1.

    Source: Modoranu et al. 2025 (arXiv:2505.17967), section on rotation; the counts are ours.
    """

    def layout_in(self, where: Geometry) -> Layout:
        return adam_fields(where.low_shape) | count_fields(where)

    def update(self, grad: Tensor, moments: Moments, step: float | Tensor) -> Direction:
        exp_avg, exp_avg_sq = self.advance_(grad, moments)
        counts = moments["counts"].add_(1).double()  # for the powers
        correction, root = (factor.to(grad.dtype) for factor in self.corrections(counts))
        denominator = exp_avg_sq.sqrt().div_(root).add_(self.eps).mul_(correction)
        return Direction(exp_avg, denominator)

    def turned(self, moments: Moments, turn: Turn, step: float | Tensor) -> Moments:
        """Each direction keeps its moments and its count; one that enters starts at zero."""
        mean, variance = moments["exp_avg"], moments["exp_avg_sq"]
        if isinstance(turn, IndexTurn):
            mean, variance = turn.both(mean, variance)
        else:
            mean, variance = turn.linear(mean), turn.squared(variance)
        return {"exp_avg": mean, "exp_avg_sq": variance, "counts": turn.linear(moments["counts"])}

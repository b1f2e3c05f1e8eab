"""Accumulation in compressed form: the sum of a weight's gradients as one random sketch (Flora)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_core.memory.geometry import Geometry, Side
from lowrank_core.optim.parts.projectors.gaussian import Drawn
from lowrank_core.optim.seeds import mix_seed
from lowrank_core.optim.slots import Slot

_CYCLE = 0xF1  # sets the draws of accumulation apart from all others of a weight


@dataclass(frozen=True)
class Compression:
    """C = P^T G, or G P, and back: P P^T G, which is G in the mean. P is drawn whenever it is read, and never kept.

    P has independent normal entries of variance 1 / r. All backward passes of one step have the same one, so that their
    sketches add up; each step has another one, so that what a sketch loses differs from step to step.

    Source: Hao, Cao, Mou 2024 (Flora, arXiv:2402.03293), algorithm 1.
    """

    where: Geometry
    seed: int
    work: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, slot: Slot, where: Geometry, step: int) -> Compression:
        """That of a projected weight after `step` finished steps."""
        return cls(where, mix_seed(slot.seed, slot.index, step, _CYCLE), slot.work, slot.weight.device)

    def down(self, grad: Tensor) -> Tensor:
        """The sketch of `grad` [m, n]."""
        return self._drawn().down(grad.to(self.work))

    def up(self, sketch: Tensor) -> Tensor:
        """[m, n]: what `sketch` gives back."""
        return self._drawn().up(sketch)

    def _drawn(self) -> Drawn:
        return Drawn(self.where, self.seed, self.work, self.device)


def squared_norm_of(sketch: Tensor, where: Geometry) -> tuple[Tensor, Tensor]:
    """|G|_F^2 of a gradient that only its sketch is left of, and the variance of this estimate: 0-d float64 each.

    Each of the r lines of a sketch gives an estimate without bias; the variance is taken from their spread. A single
    line has none: then it is 2 |G|_F^4, which no gradient exceeds.
    """
    lines = sketch.double().square().sum(dim=1 if where.side == Side.LEFT else 0) * where.rank
    square = lines.mean()
    return square, lines.var() / where.rank if where.rank > 1 else 2 * square**2

"""Subspaces that are a selection: some rows or columns of a matrix, all of it, or nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_core.memory.geometry import Geometry, Side
from lowrank_core.optim.parts.subspaces import Subspace


@dataclass(frozen=True)
class Selection:
    """What they share: entries are taken over as they are, so that what is left over is exact."""

    where: Geometry  # at the rank of the selection

    @property
    def rank(self) -> int:
        return self.where.rank

    def down(self, grad: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__}: a selection must say what it takes")

    def up(self, low: Tensor) -> Tensor:
        return self.put_(low.new_zeros(self.where.rows, self.where.cols), low)

    def put_(self, matrix: Tensor, low: Tensor) -> Tensor:
        """`matrix` [m, n] with `low` in the places that are selected."""
        raise NotImplementedError(f"{type(self).__name__}: a selection must say where it puts")

    def share_of(self, old: Selection) -> float:
        """How much of the smaller one of two selections the other one has, too."""
        raise NotImplementedError(f"{type(self).__name__}: a selection must say what it shares")

    def turn_from(self, old: Subspace) -> Moved:
        if not isinstance(old, type(self)):
            raise TypeError(f"turn_from: `old` must be a selection of the same kind, got {type(old).__name__}")
        return Moved(old, self)


@dataclass(frozen=True)
class Moved:
    """A change of selection: what both have is carried over, the rest is zero."""

    old: Selection
    new: Selection

    def linear(self, low: Tensor) -> Tensor:
        return self.new.down(self.old.up(low))

    def squared(self, low: Tensor) -> Tensor:
        return self.linear(low)

    def overlap(self) -> Tensor:
        return torch.tensor(self.new.share_of(self.old), device="cpu")

    def cosine(self) -> Tensor:
        return self.overlap()  # each angle is 0 or a right one


@dataclass(frozen=True)
class All(Selection):
    """All of a matrix, which is passed on and not copied; or nothing, at rank 0."""

    def down(self, grad: Tensor) -> Tensor:
        return grad if self.rank else grad[:0, :0]

    def up(self, low: Tensor) -> Tensor:
        return low if self.rank else super().up(low)

    def put_(self, matrix: Tensor, low: Tensor) -> Tensor:
        return low if self.rank else matrix

    def share_of(self, old: Selection) -> float:
        return float(self.rank == old.rank)


@dataclass(frozen=True)
class Lines(Selection):
    """Some rows (side left) or columns (right), in ascending order."""

    indices: Tensor  # [rank], int64

    def down(self, grad: Tensor) -> Tensor:
        return grad.index_select(self._dim, self.indices)

    def put_(self, matrix: Tensor, low: Tensor) -> Tensor:
        return matrix.index_copy_(self._dim, self.indices, low)

    def share_of(self, old: Selection) -> float:
        theirs = old.indices if isinstance(old, Lines) else self.indices[:0]
        common = int(torch.isin(self.indices, theirs).sum())
        return common / max(1, min(self.rank, old.rank)) if self.rank else 1.0

    @property
    def _dim(self) -> int:
        return 0 if self.where.side == Side.LEFT else 1

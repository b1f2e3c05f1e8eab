"""Subspaces spanned by atoms of a fixed orthogonal basis, which are told by their numbers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lowrank_core.ops.dct_select.moments import rotate_unrecorded
from lowrank_core.optim.devices import has_kernels
from lowrank_core.optim.parts import atoms
from lowrank_core.optim.parts.rules import Turn
from lowrank_core.optim.parts.subspaces import Subspace


@dataclass(frozen=True)
class Indices:
    """The atoms number `indices` of the basis called `basis` (`atoms.BASES`); no basis is stored.

    `spectral`: what comes `down` is given by its coordinates in the whole basis, as `Feedback` gives it.
    """

    indices: Tensor  # [r] int64, ascending without repeats
    length: int  # of the transformed side
    side: str  # "left" or "right"
    basis: str
    spectral: bool = False

    @property
    def rank(self) -> int:
        return len(self.indices)

    @property
    def axis(self) -> int:
        """The axis of a low-rank matrix along which the atoms lie."""
        return 0 if self.side == "left" else 1

    def down(self, grad: Tensor) -> Tensor:
        whole = grad if self.spectral else atoms.coordinates(grad, self.basis, self.side)
        return whole.index_select(self.axis, self.indices)

    def up(self, low: Tensor) -> Tensor:
        return atoms.lift(low, self.indices, self.length, basis=self.basis, side=self.side)

    def damp_(self, spectrum: Tensor, keep: float) -> None:
        """Multiplies what this subspace holds of `spectrum`, coordinates [m, n], in place."""
        if keep == 0:
            spectrum.index_fill_(self.axis, self.indices, 0.0)
        else:
            spectrum.index_copy_(self.axis, self.indices, spectrum.index_select(self.axis, self.indices).mul_(keep))

    def turn_from(self, old: Subspace) -> Turn:
        if not isinstance(old, Indices) or (old.basis, old.side, old.length) != (self.basis, self.side, self.length):
            raise TypeError("turn_from: `old` must be a subspace of atoms of the same basis, got another one")
        return IndexTurn(old, self)


@dataclass(frozen=True)
class IndexTurn:
    """T = Q_new^T Q_old has ones where the numbers match and zeros elsewhere, so turning is copying: exact, and a
    second moment stays as it is.

    Source: Modoranu et al. 2025 (arXiv:2505.17967), whose product of matrices this equals.
    """

    old: Indices
    new: Indices

    @cached_property
    def matches(self) -> tuple[Tensor, Tensor]:
        """[r]: where each atom stood before, and whether it did."""
        at = torch.searchsorted(self.old.indices, self.new.indices).clamp_(max=self.old.rank - 1)
        return at, self.old.indices[at] == self.new.indices

    def linear(self, low: Tensor) -> Tensor:
        at, stays = self.matches
        return low.index_select(self.new.axis, at).masked_fill_(~(stays[:, None] if self.new.axis == 0 else stays), 0)

    def squared(self, low: Tensor) -> Tensor:
        return self.linear(low)

    def both(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """`linear` of the one and `squared` of the other, in one call where a kernel has it."""
        if has_kernels(mean.device):
            return rotate_unrecorded(mean, variance, self.old.indices, self.new.indices, self.new.side)
        return self.linear(mean), self.squared(variance)

    def overlap(self) -> Tensor:
        return self.matches[1].double().mean()

    def cosine(self) -> Tensor:
        return self.overlap()  # each angle is 0 or a right one

"""Subspaces spanned by the columns of dense bases."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lowrank_core.optim.parts.products import orthonormal, principal_cosines, project, project_back
from lowrank_core.optim.parts.rules import Turn
from lowrank_core.optim.parts.subspaces import Bases, Subspace


@dataclass(frozen=True)
class Dense:
    """A subspace spanned by the columns of a basis on one side, or of one basis on each side."""

    bases: Bases

    @property
    def rank(self) -> int:
        return max(basis.shape[1] for basis in self.bases.values())

    def down(self, grad: Tensor) -> Tensor:
        for side, basis in self.bases.items():
            grad = project(grad, basis, side)
        return grad

    def up(self, low: Tensor) -> Tensor:
        return _multiplied(low, self.bases)

    def turn_from(self, old: Subspace) -> Turn:
        if not isinstance(old, Dense):
            raise TypeError(f"turn_from: `old` must be a dense subspace, got {type(old).__name__}")
        return DenseTurn(old, self)


@dataclass(frozen=True)
class DenseTurn:
    """T = P_new^T P_old of each side, computed only if it is asked for."""

    old: Dense
    new: Dense

    @cached_property
    def change(self) -> Bases:
        """T by side."""
        return {side: project(self.old.bases[side], basis, "left") for side, basis in self.new.bases.items()}

    def linear(self, low: Tensor) -> Tensor:
        return _multiplied(low, self.change)

    def squared(self, low: Tensor) -> Tensor:
        return _multiplied(low, {side: change.square() for side, change in self.change.items()})

    def overlap(self) -> Tensor:
        # Columns that were drawn are neither orthogonal nor of length one.
        pairs = [(orthonormal(self.old.bases[side]), orthonormal(basis)) for side, basis in self.new.bases.items()]
        changes = [project(old, new, "left") for old, new in pairs]
        shares = [change.square().sum() / min(change.shape) for change in changes]
        return torch.stack(shares).mean().clamp(max=1)

    def cosine(self) -> Tensor:
        cosines = [principal_cosines(basis, self.old.bases[side]).mean() for side, basis in self.new.bases.items()]
        return torch.stack(cosines).mean()


def _multiplied(x: Tensor, factors: Bases) -> Tensor:
    """F x, x F^T or F x F'^T, by the sides of `factors`: out of a subspace, or from one into another."""
    for side, factor in factors.items():
        x = project_back(x, factor, side)
    return x

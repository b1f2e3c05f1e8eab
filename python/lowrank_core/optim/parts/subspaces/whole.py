"""No subspace: the matrix whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_core.optim.parts.subspaces import Subspace


@dataclass(frozen=True)
class All:
    """All of a matrix' space: the way in, out and over from itself changes nothing, and copies nothing."""

    rank: int

    def down(self, grad: Tensor) -> Tensor:
        return grad

    def up(self, low: Tensor) -> Tensor:
        return low

    def turn_from(self, old: Subspace) -> Unturned:
        if not isinstance(old, All):
            raise TypeError(f"turn_from: `old` must be whole, got {type(old).__name__}")
        return Unturned()


@dataclass(frozen=True)
class Unturned:
    """A change to the same subspace, in the same coordinates."""

    def linear(self, low: Tensor) -> Tensor:
        return low

    def squared(self, low: Tensor) -> Tensor:
        return low

    def overlap(self) -> Tensor:
        return torch.ones(())

"""Subspaces: where an update lives, how it is represented, and the way in and out."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from lowrank_core.optim.parts.rules import Turn

Bases = dict[str, Tensor]  # "left": [m, r], "right": [n, r]


class Subspace(Protocol):
    """One subspace of one weight, in the working dtype."""

    @property
    def rank(self) -> int:
        """Its dimensions."""
        ...

    def down(self, grad: Tensor) -> Tensor:
        """`grad` [m, n] in the subspace."""
        ...

    def up(self, low: Tensor) -> Tensor:
        """`low` of the subspace as a matrix [m, n]."""
        ...

    def turn_from(self, old: Subspace) -> Turn:
        """The change from `old`, a subspace of the same kind."""
        ...

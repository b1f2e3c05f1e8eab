"""Residuals: what becomes of the part of the gradient that the subspace does not hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from lowrank_core.memory.geometry import Geometry
from lowrank_core.memory.storage import Layout
from lowrank_core.optim.codecs import State
from lowrank_core.optim.rules import Direction


class Residual(Protocol):
    """Makes the direction of a projected weight from that of the subspace and from the whole gradient."""

    def layout(self, geometry: Geometry, weight: str) -> Layout:
        """The tensors that it keeps in the state itself, from the first step on: `residual.<field>`.

        `weight` is the name of the weight's dtype.
        """
        ...

    def complete(
        self,
        grad: Tensor,
        low: Tensor,
        direction: Direction,
        lift: Callable[[Direction], Direction],
        state: State,
    ) -> Direction:
        """The direction of the weight.

        Args:
          grad: [m, n], working dtype: the whole gradient G.
          low: the gradient in the subspace, R.
          direction: what the rule made of R.
          lift: takes a direction of the subspace to the weight's shape, scaled.
          state: of the parameter; tensors in it are written in place.
        """
        ...


@dataclass(frozen=True)
class Drop:
    """The rest is dropped: the direction is lifted and nothing is added (GaLore)."""

    def layout(self, geometry: Geometry, weight: str) -> Layout:
        return {}

    def complete(
        self,
        grad: Tensor,
        low: Tensor,
        direction: Direction,
        lift: Callable[[Direction], Direction],
        state: State,
    ) -> Direction:
        return lift(direction)

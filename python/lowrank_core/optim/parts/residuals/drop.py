"""What residuals share, and the one that drops the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from lowrank_core.checks import is_number, require
from lowrank_core.memory.geometry import Geometry
from lowrank_core.memory.storage import Layout
from lowrank_core.ops.subspace_step.check import NO_CAP
from lowrank_core.optim.parts.residuals import Seen
from lowrank_core.optim.parts.rules import Direction, Moments
from lowrank_core.optim.parts.subspaces import Subspace
from lowrank_core.optim.slots import State


def kernel_of(residual: str, scale: float, **others: float) -> dict[str, Any]:
    """The arguments of `subspace_step_` for `residual`; those that are not named act on nothing."""
    return {"residual": residual, "scale": scale, "residual_scale": 0.0, "cap": NO_CAP, "growth": 1.0, **others}


@dataclass(frozen=True)
class Scaled:
    """What residuals share that take the gradient as it is; `scale` multiplies the update."""

    scale: float = 1.0
    needs_whole: ClassVar[bool] = True
    takes_sketches: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(is_number(self.scale), type(self).__name__, "scale", "be a finite number", self.scale)

    def layout(self, where: Geometry) -> Layout:
        return {}

    @property
    def feeds_back(self) -> bool:
        return type(self).enter is not Scaled.enter

    def enter(self, grad: Tensor, state: State) -> Tensor:
        return grad

    def leave(self, old: Subspace, moments: Callable[[], Moments]) -> Tensor | None:
        return None

    def limits(self, states: list[State]) -> list[Tensor]:
        return []

    def floor(self, low: Tensor) -> float:
        return 0.0


@dataclass(frozen=True)
class Drop(Scaled):
    """The rest is dropped: scale P N (GaLore)."""

    needs_whole: ClassVar[bool] = False

    def complete(self, seen: Seen, state: State) -> Direction:
        return self.lifted(seen.direction, seen.subspace)

    def lifted(self, direction: Direction, subspace: Subspace) -> Direction:
        """The direction of the weight."""
        return Direction(subspace.up(direction.dense(self.scale)))

    def kernel(self) -> dict[str, Any] | None:
        return kernel_of("drop", self.scale)

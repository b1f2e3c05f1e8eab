"""Residuals: what becomes of the part of the gradient that the subspace does not hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from lowrank_core.memory.geometry import Geometry
from lowrank_core.memory.storage import Layout
from lowrank_core.optim.parts.rules import Direction, Moments
from lowrank_core.optim.parts.subspaces import Subspace
from lowrank_core.optim.slots import Draw, State


class Seen(NamedTuple):
    """What a residual makes the direction of a weight of."""

    grad: Tensor  # [m, n], working dtype: what `enter` made of the gradient
    low: Tensor  # the same in the subspace, R
    direction: Direction  # what the rule made of R
    subspace: Subspace
    where: Geometry
    left: Tensor | None  # what `leave` gave
    whole: Tensor | None  # the gradient [m, n] itself, working dtype, negated to maximize
    draw: Draw  # keys what is drawn in this step


class Residual(Protocol):
    """Acts at both ends of the subspace."""

    @property
    def needs_whole(self) -> bool:
        """True if `complete` reads the gradient itself, not only what the subspace holds of it."""
        ...

    @property
    def feeds_back(self) -> bool:
        """True if `enter` makes something else of the gradient, so that gradients do not add up behind it."""
        ...

    @property
    def takes_sketches(self) -> bool:
        """True if its method lets gradients add up in random sketches, which give them back in the mean."""
        ...

    def layout(self, where: Geometry) -> Layout:
        """What it keeps in the state: `residual.<field>`."""
        ...

    def enter(self, grad: Tensor, state: State) -> Tensor:
        """What is projected of the gradient [m, n], in its dtype, and searched for a subspace. Changes no `state`."""
        ...

    def leave(self, old: Subspace, moments: Callable[[], Moments]) -> Tensor | None:
        """What it wants to know of a subspace that is left in this step, with the moments in it before they travel."""
        ...

    def complete(self, seen: Seen, state: State) -> Direction:
        """The direction of the weight; tensors in `state` are written in place."""
        ...

    def kernel(self) -> dict[str, Any] | None:
        """Its arguments of `subspace_step_`; None where no kernel has it."""
        ...

    def limits(self, states: list[State]) -> list[Tensor]:
        """What `subspace_step_` keeps of each weight between steps; none where there is no limiter."""
        ...

    def floor(self, low: Tensor) -> float:
        """The norm below which what `limits` keeps of a weight with the low-rank gradient `low` says nothing."""
        ...

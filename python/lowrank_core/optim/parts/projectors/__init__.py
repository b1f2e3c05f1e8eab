"""Projectors: how a subspace is found, and how it is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from lowrank_core.memory.geometry import Geometry
from lowrank_core.memory.storage import Layout
from lowrank_core.optim.parts.rules import Moments
from lowrank_core.optim.parts.subspaces import Subspace
from lowrank_core.optim.slots import Slot, State


class Query(NamedTuple):
    """One gradient for which a subspace is wanted."""

    grad: Tensor  # [m, n], any floating dtype, finite, not zero
    where: Geometry  # of the largest rank
    held: Subspace | None  # where to start; None at first
    seed: int
    moments: Callable[[], Moments]  # those in the subspace held, decoded when they are asked for; none at first
    step: float | Tensor  # how many are finished; a tensor behind a gate
    refreshes: int  # how many subspaces were found before; of projectors of each step, whether there was one
    base_seed: int  # of the group, the same for each of its weights
    turn: tuple[int, int]  # as in `Slot`


class Found(NamedTuple):
    """What a search found."""

    subspace: Subspace
    low: Tensor | None = None  # the gradient in it, where the search has seen it


class Projector(Protocol):
    """Looks for subspaces, and owns how they are kept in the state."""

    @property
    def may_fail(self) -> bool:
        """True if `find` can raise on a finite gradient: all subspaces are then found before anything changes."""
        ...

    @property
    def each_step(self) -> bool:
        """True if a subspace is chosen at every step, as a part of it; `find` then waits for no device."""
        ...

    @property
    def searches_first(self) -> bool:
        """True if the first subspace is looked for before the step all the same: a gradient of zeros names none."""
        ...

    @property
    def ranks_vary(self) -> bool:
        """True if `find` may find subspaces of a lower rank than the largest."""
        ...

    def layout(self, where: Geometry, weight: str) -> Layout:
        """The fields that keep a subspace at `where`, for a weight of dtype `weight`."""
        ...

    def held(self, slot: Slot, state: State) -> Subspace:
        """The subspace in `state`."""
        ...

    def hold(self, slot: Slot, state: State, subspace: Subspace) -> None:
        """Replaces the subspace in `state` by `subspace`, which `find` found."""
        ...

    def find(self, queries: Sequence[Query]) -> list[Found]:
        """Subspaces for each of `queries`, in one call if a kernel takes lists."""
        ...

    def stored_basis(self, slot: Slot, state: State) -> Tensor:
        """The basis of one side, for a kernel, as it is stored."""
        ...

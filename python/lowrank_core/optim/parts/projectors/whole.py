"""Nothing is projected: matrices are taken whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowrank_core.memory.geometry import Geometry
from lowrank_core.memory.storage import Layout
from lowrank_core.optim.parts.projectors import Found, Query
from lowrank_core.optim.parts.subspaces import Subspace
from lowrank_core.optim.parts.subspaces.whole import All
from lowrank_core.optim.slots import Slot, State


@dataclass(frozen=True)
class Whole:
    """Takes each matrix whole. There is no search, and nothing of it is kept."""

    may_fail: ClassVar[bool] = False
    each_step: ClassVar[bool] = True  # so that nothing ever waits for a search
    ranks_vary: ClassVar[bool] = False

    def layout(self, where: Geometry, weight: str) -> Layout:
        return {}

    def held(self, slot: Slot, state: State) -> All:
        return All(state["proj.rank"])

    def hold(self, slot: Slot, state: State, subspace: Subspace) -> None:
        pass

    def find(self, queries: Sequence[Query]) -> list[Found]:
        return [Found(query.held or All(query.where.rank), query.grad) for query in queries]

    def stored_basis(self, slot: Slot, state: State) -> Tensor:
        raise TypeError(f"stored_basis: `{slot.name}` must be projected, got one that is taken whole")

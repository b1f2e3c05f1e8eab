"""Selections that are drawn: rows or columns, or whole matrices of a group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowrank_core.memory.frugal import DENSITY, active_of
from lowrank_core.memory.geometry import Geometry, Side
from lowrank_core.memory.storage import Layout, index_fields
from lowrank_core.ops.normal import fill_normal
from lowrank_core.optim.parts.projectors import Found, Query
from lowrank_core.optim.parts.selectors import selected
from lowrank_core.optim.parts.subspaces import Subspace
from lowrank_core.optim.parts.subspaces.selection import All, Lines, Selection
from lowrank_core.optim.slots import Slot, State


@dataclass(frozen=True)
class Whole:
    """Takes each matrix whole. There is no search, and nothing of it is kept."""

    may_fail: ClassVar[bool] = False
    each_step: ClassVar[bool] = True  # so that nothing ever waits for a search
    searches_first: ClassVar[bool] = False
    ranks_vary: ClassVar[bool] = False

    def layout(self, where: Geometry, weight: str) -> Layout:
        return {}

    def held(self, slot: Slot, state: State) -> Selection:
        return All(slot.where(state))

    def hold(self, slot: Slot, state: State, subspace: Subspace) -> None:
        pass

    def find(self, queries: Sequence[Query]) -> list[Found]:
        return [Found(query.held or All(query.where), query.grad) for query in queries]

    def stored_basis(self, slot: Slot, state: State) -> Tensor:
        raise TypeError(f"stored_basis: `{slot.name}` must have a basis, got one that is a selection")


@dataclass(frozen=True)
class Blocks(Whole):
    """Takes some of the matrices of a group whole and nothing of the others; others each time.

    Which ones is a function of seed, period and place. A period is that of the whole group, whatever the phase of a
    matrix in it.

    Source: Zmushko et al. 2024 (FRUGAL, arXiv:2411.07837), its block-wise subspaces.
    """

    share: float = DENSITY  # of the matrices of a group
    gap: int = 200
    each_step: ClassVar[bool] = False
    ranks_vary: ClassVar[bool] = True

    def find(self, queries: Sequence[Query]) -> list[Found]:
        return [Found(All(query.where.at(query.where.rank if self.takes(query) else 0))) for query in queries]

    def takes(self, query: Query) -> bool:
        """True if the matrix of `query` is among those of its period."""
        period, (number, count) = -(-int(query.step) // self.gap), query.turn
        return number in selected(query.base_seed, period, count, active_of(self.share, count))


@dataclass(frozen=True)
class DrawnLines(Whole):
    """Takes some rows (side left) or columns (right), drawn without replacement.

    Source: Zmushko et al. 2024 (FRUGAL, arXiv:2411.07837), its column-wise subspaces.
    """

    each_step: ClassVar[bool] = False

    def layout(self, where: Geometry, weight: str) -> Layout:
        return index_fields(where)

    def held(self, slot: Slot, state: State) -> Selection:
        return Lines(slot.where(state), state["proj.indices"])

    def hold(self, slot: Slot, state: State, subspace: Subspace) -> None:
        if isinstance(subspace, Lines):
            state["proj.indices"].copy_(subspace.indices)

    def find(self, queries: Sequence[Query]) -> list[Found]:
        return [Found(Lines(query.where, self._draw(query))) for query in queries]

    def _draw(self, query: Query) -> Tensor:
        """The places of the smallest ones among as many numbers as there are lines."""
        where = query.where
        numbers = torch.empty(
            1, where.rows if where.side == Side.LEFT else where.cols, dtype=torch.float64, device="cpu"
        )
        fill_normal(numbers, query.seed)
        chosen = numbers[0].argsort(stable=True)[: where.rank].sort().values
        return chosen.to(query.grad.device)

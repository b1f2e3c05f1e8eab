"""Projectors that choose among the atoms of a fixed orthogonal basis, and the one that takes a matrix whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowrank_core.checks import is_count, require, require_choice
from lowrank_core.memory.geometry import Geometry, Side
from lowrank_core.memory.storage import AUTO_BASES, AUTO_BASIS, AUTO_KEY, Layout, atom_fields
from lowrank_core.optim.parts import atoms
from lowrank_core.optim.parts.projectors import Found, Query
from lowrank_core.optim.parts.subspaces import Subspace
from lowrank_core.optim.parts.subspaces.indices import Indices
from lowrank_core.optim.slots import Slot, State


@dataclass(frozen=True)
class FoundIndices(Indices):
    """A subspace that was just chosen, with the share that it holds of what it was chosen from."""

    captured: Tensor | None = None


@dataclass(frozen=True)
class Selection:
    """The atoms of the basis called `basis` that keep most of a gradient: by squares, the best choice of all.

    `AUTO_BASIS` takes for each weight that of `AUTO_BASES` whose atoms, chosen as `norm_ord` says, hold more of the
    squared norm of its first gradient that is not zero; at a tie the identity, which costs no transform. A weight stays
    with its basis.
    `spectral`: the gradient is given by its coordinates, which the residual made.

    Source: Modoranu et al. 2025 (arXiv:2505.17967); ranking by squares (`norm_ord` 2), ties to the lower index and the
      ascending order are ours.
    """

    basis: str = "dct2"
    norm_ord: int = 2
    spectral: bool = False
    may_fail: ClassVar[bool] = False
    each_step: ClassVar[bool] = False
    ranks_vary: ClassVar[bool] = False

    def __post_init__(self) -> None:
        name = type(self).__name__
        require_choice(name, "basis", self.basis, (*atoms.BASES, AUTO_BASIS))
        require(is_count(self.norm_ord, 1) and self.norm_ord <= 2, name, "norm_ord", "be 1 or 2", self.norm_ord)

    @property
    def searches_first(self) -> bool:
        return self.basis == AUTO_BASIS

    def layout(self, where: Geometry, weight: str) -> Layout:
        return atom_fields(where, self.basis)

    def held(self, slot: Slot, state: State) -> Indices:
        length, side = length_and_side(slot.where(state))
        return Indices(state[f"proj.{self.basis}"], length, side, atoms.basis_in(state, self.basis), self.spectral)

    def hold(self, slot: Slot, state: State, subspace: Subspace) -> None:
        if isinstance(subspace, Indices):
            state[f"proj.{self.basis}"].copy_(subspace.indices)
            if self.basis == AUTO_BASIS:
                state[AUTO_KEY] = AUTO_BASES.index(subspace.basis)
        if isinstance(subspace, FoundIndices) and subspace.captured is not None:
            state["proj.captured"].copy_(subspace.captured)

    def find(self, queries: Sequence[Query]) -> list[Found]:
        return [self._find(query) for query in queries]

    def as_subspace(self, where: Geometry, chosen: atoms.Chosen, basis: str) -> FoundIndices:
        """What was chosen for a weight at `where`."""
        return FoundIndices(chosen.indices, *length_and_side(where), basis, self.spectral, chosen.captured)

    def stored_basis(self, slot: Slot, state: State) -> Tensor:
        held = self.held(slot, state)
        identity = torch.eye(held.rank, dtype=slot.work, device=slot.weight.device)
        return held.up(identity) if held.side == "left" else held.up(identity).mT

    def _find(self, query: Query) -> Found:
        basis, chosen = self._choose(query)
        return Found(self.as_subspace(query.where, chosen, basis), chosen.low)

    def _choose(self, query: Query) -> tuple[str, atoms.Chosen]:
        """The atoms, and their basis."""
        held = query.held
        if self.basis == AUTO_BASIS and not isinstance(held, Indices):  # and so the residual made no coordinates yet
            found = {basis: self._choose_in(query, basis) for basis in AUTO_BASES}
            best = max(found, key=lambda basis: float(found[basis].captured))  # the first one at a tie
            return best, found[best]
        basis = held.basis if isinstance(held, Indices) else self.basis
        return basis, self._choose_in(query, "identity" if self.spectral else basis)

    def _choose_in(self, query: Query, basis: str) -> atoms.Chosen:
        _, side = length_and_side(query.where)
        return atoms.choose(query.grad, query.where.rank, basis=basis, side=side, norm_ord=self.norm_ord)


@dataclass(frozen=True)
class EachStepSelection(Selection):
    """`Selection` as a part of every step."""

    each_step: ClassVar[bool] = True


def length_and_side(where: Geometry) -> tuple[int, str]:
    """The side of a matrix that has the basis, and how long it is."""
    return (where.rows, "left") if where.side == Side.LEFT else (where.cols, "right")

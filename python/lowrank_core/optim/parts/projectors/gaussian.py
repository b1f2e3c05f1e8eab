"""A random projection, drawn from its seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from lowrank_core.memory.geometry import Geometry
from lowrank_core.memory.storage import Layout
from lowrank_core.ops.normal import fill_normal, fill_normal_list
from lowrank_core.ops.subspace_step.scratch import scratch
from lowrank_core.optim.dtypes import name_of, work_dtype
from lowrank_core.optim.parts.projectors import Found, Query
from lowrank_core.optim.parts.subspaces import Bases, Subspace
from lowrank_core.optim.parts.subspaces.dense import Dense
from lowrank_core.optim.slots import Slot, State


class Drawn(Dense):
    """A subspace whose bases are drawn when they are first read. Moments that are kept as they are read no old ones."""

    _drawn_from: tuple[Geometry, int, torch.dtype, torch.device]

    def __init__(self, where: Geometry, seed: int, work: torch.dtype, device: torch.device) -> None:
        object.__setattr__(self, "_drawn_from", (where, seed, work, device))

    @property
    def rank(self) -> int:
        return self._drawn_from[0].rank

    @cached_property
    def bases(self) -> Bases:
        where, seed, work, device = self._drawn_from
        bases = {}
        for side, shape in where.basis_shapes.items():
            basis = torch.empty(shape, dtype=work, device="cpu")
            fill_normal(basis, seed, divisor=_divisor(where))
            bases[side] = basis.to(device)
        return bases


def _divisor(where: Geometry) -> float:
    """Of standard normal entries, for a variance of 1 / r."""
    return float(where.rank**0.5)


@dataclass(frozen=True)
class Gaussian:
    """A basis of independent normal entries of variance 1 / r. It keeps lengths in the mean, and there is no search.

    It is drawn from its seed whenever it is needed; the state keeps only the number of the draw.

    Source: Zhu et al. 2024 (APOLLO, arXiv:2412.05270), section 4.2.
    """

    may_fail: ClassVar[bool] = False
    each_step: ClassVar[bool] = False
    searches_first: ClassVar[bool] = False
    ranks_vary: ClassVar[bool] = False

    def layout(self, where: Geometry, weight: str) -> Layout:
        return {}

    def held(self, slot: Slot, state: State) -> Dense:
        return Drawn(slot.where(state), self._seed(slot, state), slot.work, slot.weight.device)

    def hold(self, slot: Slot, state: State, subspace: Subspace) -> None:
        pass

    def stored_basis(self, slot: Slot, state: State) -> Tensor:
        (basis,) = self.held(slot, state).bases.values()
        return basis

    def stored_bases(self, slots: Sequence[Slot], states: Sequence[State]) -> list[Tensor]:
        """`stored_basis` of weights on the host, drawn side by side in memory that lasts for one step."""
        places = [slot.where(state) for slot, state in zip(slots, states, strict=True)]
        shapes = [shape for where in places for shape in where.basis_shapes.values()]
        bases: list[Tensor] = scratch([slot.weight for slot in slots], shapes, [name_of(slot.work) for slot in slots])
        seeds = [self._seed(slot, state) for slot, state in zip(slots, states, strict=True)]
        fill_normal_list(bases, seeds, [_divisor(where) for where in places])
        return bases

    def _seed(self, slot: Slot, state: State) -> int:
        return slot.search_seed(state["proj.refreshes"] - 1)

    def find(self, queries: Sequence[Query]) -> list[Found]:
        return [
            Found(Drawn(query.where, query.seed, work_dtype(query.grad.dtype), query.grad.device)) for query in queries
        ]

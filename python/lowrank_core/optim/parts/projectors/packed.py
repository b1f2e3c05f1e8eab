"""Projectors whose bases are kept as packed 4-bit codes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowrank_core.checks import require
from lowrank_core.memory.geometry import Geometry
from lowrank_core.memory.storage import GROUP_SIZES, Layout, basis_keys, packed_fields
from lowrank_core.optim.dtypes import work_dtype
from lowrank_core.optim.parts.packing import pack, packed, unpack_list
from lowrank_core.optim.parts.projectors import Found, Query
from lowrank_core.optim.parts.projectors.orthonormal import Orthonormal, bases_of
from lowrank_core.optim.parts.subspaces import Subspace
from lowrank_core.optim.parts.subspaces.packed import Packed
from lowrank_core.optim.slots import Slot, State

_PARTS = ("codes", "scales", "offsets")
_DENSE_TOGETHER = 4  # matrices whose bases are dense at the same time, while a search runs


@dataclass(frozen=True)
class PackedBasis:
    """What `search` finds, kept in 4-bit codes in groups of `group_size` rows.

    A search starts from the decoded basis, and what it finds points to where that points.

    Source: Zhang et al. 2024 (Q-GaLore, arXiv:2407.08296), section 3.3. Deviations: two codes share a byte, and a
      group has an offset of its own, where the published zero point destroys groups of one sign.
    """

    search: Orthonormal
    group_size: int = 128
    each_step: ClassVar[bool] = False
    searches_first: ClassVar[bool] = False
    ranks_vary: ClassVar[bool] = False

    def __post_init__(self) -> None:
        rule = f"be a multiple of {GROUP_SIZES.step} from {GROUP_SIZES.start} to {GROUP_SIZES[-1]}"
        whole = isinstance(self.group_size, int) and self.group_size in GROUP_SIZES
        require(whole, type(self).__name__, "group_size", rule, self.group_size)

    @property
    def may_fail(self) -> bool:
        return self.search.may_fail

    def layout(self, where: Geometry, weight: str) -> Layout:
        return packed_fields(where, self.group_size)

    def held(self, slot: Slot, state: State) -> Packed:
        where = slot.where(state)
        codes = {}
        for side, key in basis_keys(where).items():
            parts = [state[f"{key}.{part}"] for part in _PARTS]
            codes[side] = packed(parts, where.basis_shapes[side][0], self.group_size)
        return Packed(codes, slot.work)

    def hold(self, slot: Slot, state: State, subspace: Subspace) -> None:
        if not isinstance(subspace, Packed):
            raise TypeError(f"hold: `subspace` must be a packed one, got {type(subspace).__name__}")
        for side, key in basis_keys(slot.where(state)).items():
            for part, value in zip(_PARTS, subspace.codes[side], strict=False):
                state[f"{key}.{part}"].copy_(value)

    def stored_basis(self, slot: Slot, state: State) -> Tensor:
        return self.stored_bases([slot], [state])[0]

    def stored_bases(self, slots: Sequence[Slot], states: Sequence[State]) -> list[Tensor]:
        """`stored_basis` of weights of one dtype, decoded side by side."""
        held = [self.held(slot, state) for slot, state in zip(slots, states, strict=True)]
        return unpack_list([codes for one in held for codes in one.codes.values()], slots[0].work) if slots else []

    def find(self, queries: Sequence[Query]) -> list[Found]:
        return [
            found
            for start in range(0, len(queries), _DENSE_TOGETHER)
            for found in self._find(queries[start:][:_DENSE_TOGETHER])
        ]

    def _find(self, queries: Sequence[Query]) -> Iterator[Found]:
        decoded = [
            query._replace(held=query.held.dense() if isinstance(query.held, Packed) else None) for query in queries
        ]
        for query, found in zip(queries, self.search.find(decoded), strict=True):
            codes = {side: pack(basis, self.group_size) for side, basis in bases_of(found.subspace).items()}
            yield Found(Packed(codes, work_dtype(query.grad.dtype)))

"""Subspaces whose bases are packed 4-bit codes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_core.ops.int4_project.matrix import Int4Matrix
from lowrank_core.optim.parts.packing import project_back_packed, project_packed, unpack
from lowrank_core.optim.parts.rules import Turn
from lowrank_core.optim.parts.subspaces import Subspace
from lowrank_core.optim.parts.subspaces.dense import Dense, DenseTurn


@dataclass(frozen=True)
class Packed:
    """A subspace spanned by the columns of packed bases, by side. The products read the codes: no basis is dense.

    The columns are orthonormal up to the rounding to codes, about a tenth.
    """

    codes: dict[str, Int4Matrix]
    work: torch.dtype

    @property
    def rank(self) -> int:
        return max(q.shape[1] for q in self.codes.values())

    def down(self, grad: Tensor) -> Tensor:
        for side, q in self.codes.items():
            grad = project_packed(grad, q, side)
        return grad

    def up(self, low: Tensor) -> Tensor:
        for side, q in self.codes.items():
            low = project_back_packed(low, q, side)
        return low

    def dense(self) -> Dense:
        """The same with dense bases."""
        return Dense({side: unpack(q, self.work) for side, q in self.codes.items()})

    def turn_from(self, old: Subspace) -> Turn:
        if not isinstance(old, Packed):
            raise TypeError(f"turn_from: `old` must be a packed subspace, got {type(old).__name__}")
        return DenseTurn(old.dense(), self.dense())

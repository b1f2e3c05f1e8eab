"""AdaRankGrad's projector: as many directions as hold a share of the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowrank_core.checks import is_count, is_number, require
from lowrank_core.memory.geometry import Side
from lowrank_core.optim.parts.products import Search, growing_vectors
from lowrank_core.optim.parts.projectors import Found, Query
from lowrank_core.optim.parts.projectors.orthonormal import Orthonormal
from lowrank_core.optim.parts.subspaces.dense import Dense

MULTIPLE = 8  # of which a rank is, where the gradient has that many directions


@dataclass(frozen=True)
class ByEnergy(Orthonormal):
    """The fewest leading singular vectors that hold `energy` of |G|_F^2, at least `min_rank`, rounded up to 8.

    All of them are directions of the gradient: a gradient of fewer, or a largest rank that is no multiple of 8, gives
    fewer. None is padded.

    Source: Refael et al. 2024 (AdaRankGrad, arXiv:2410.17881), its rule of the rank read as the smallest such one.
    """

    energy: float = 0.95
    min_rank: int = 1
    niter: int = 1
    ranks_vary: ClassVar[bool] = True

    def __post_init__(self) -> None:
        name = type(self).__name__
        met = is_number(self.energy, 0.0) and 0 < self.energy <= 1
        require(met, name, "energy", "be a number in (0, 1]", self.energy)
        require(is_count(self.min_rank, 1), name, "min_rank", "be an int >= 1", self.min_rank)
        require(is_count(self.niter, 0), name, "niter", "be an int >= 0", self.niter)

    def find(self, queries: Sequence[Query]) -> list[Found]:
        sides = ["right" if query.where.side == Side.RIGHT else "left" for query in queries]
        searches = [
            Search(query.grad if side == "left" else query.grad.mT, query.where.rank, None, query.seed)
            for query, side in zip(queries, sides, strict=True)
        ]
        found = zip(growing_vectors(searches, niter=self.niter), sides, strict=True)
        return [Found(Dense({side: vectors[:, : self.rank_for(shares)]})) for (vectors, shares), side in found]

    def rank_for(self, shares: Tensor) -> int:
        """The rank, if the first 1, 2, ... directions hold these `shares`. Waits for a device."""
        least = max(int((shares < self.energy).sum()) + 1, self.min_rank)
        return min(-(-least // MULTIPLE) * MULTIPLE, len(shares))

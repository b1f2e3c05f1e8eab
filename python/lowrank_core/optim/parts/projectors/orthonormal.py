"""Projectors with orthonormal bases: the leading singular vectors of a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lowrank_core.checks import is_count, require
from lowrank_core.memory.geometry import Geometry, Side
from lowrank_core.memory.storage import Layout, Role, basis_fields, basis_keys, stored
from lowrank_core.optim.dtypes import work_dtype
from lowrank_core.optim.parts.codecs import Codec, Float32
from lowrank_core.optim.parts.products import Search, both_vectors, leading_sign, left_vectors, normal
from lowrank_core.optim.parts.projectors import Found, Query
from lowrank_core.optim.parts.subspaces import Bases, Subspace
from lowrank_core.optim.parts.subspaces.dense import Dense
from lowrank_core.optim.slots import Slot, State


@dataclass(frozen=True)
class Orthonormal:
    """What projectors with orthonormal bases share. `codec` says how these are stored."""

    codec: Codec = field(default_factory=Float32)
    may_fail: ClassVar[bool] = False
    each_step: ClassVar[bool] = False
    searches_first: ClassVar[bool] = False
    ranks_vary: ClassVar[bool] = False

    def layout(self, where: Geometry, weight: str) -> Layout:
        return stored(basis_fields(where), self.codec, weight)

    def held(self, slot: Slot, state: State) -> Dense:
        keys = basis_keys(slot.where(state))
        return Dense({side: self.codec.decode(state, key, slot.work, Role.BASIS) for side, key in keys.items()})

    def hold(self, slot: Slot, state: State, subspace: Subspace) -> None:
        keys = basis_keys(slot.where(state))
        for side, basis in bases_of(subspace).items():
            self.codec.encode(state, keys[side], basis, Role.BASIS)

    def stored_basis(self, slot: Slot, state: State) -> Tensor:
        basis: Tensor = state["proj.basis"]
        return basis

    def find(self, queries: Sequence[Query]) -> list[Found]:
        found = zip(self.search(queries), queries, strict=True)
        return [Found(Dense(_aligned(bases, bases_of(query.held)))) for bases, query in found]

    def search(self, queries: Sequence[Query]) -> list[Bases]:
        """Orthonormal bases for each of `queries`, of any signs."""
        raise NotImplementedError(f"{type(self).__name__}: a projector must name its `search`")


@dataclass(frozen=True)
class ExactSVD(Orthonormal):
    """The leading singular vectors, by torch.linalg.svd in the working precision.

    Determinism: D2 (within a stated bound; docs/numerics.md).
    Raises: torch.linalg.LinAlgError if LAPACK does not converge.
    """

    may_fail: ClassVar[bool] = True

    def search(self, queries: Sequence[Query]) -> list[Bases]:
        return [self._search(query) for query in queries]

    def _search(self, query: Query) -> Bases:
        rank, side = query.where.rank, query.where.side
        u, _, vh = torch.linalg.svd(query.grad.to(work_dtype(query.grad.dtype)), full_matrices=False)
        left, right = u[:, :rank], vh[:rank].mT
        sign = leading_sign(right if side == Side.RIGHT else left)
        found = {}
        if side in (Side.BOTH, Side.LEFT):
            found["left"] = left * sign
        if side in (Side.BOTH, Side.RIGHT):
            found["right"] = right * sign
        return found


@dataclass(frozen=True)
class RandomizedSVD(Orthonormal):
    """The leading singular vectors, by randomized subspace iteration started from the basis held.

    A first search takes `niter` power iterations, a warm one `warm_niter`. Both draw `oversample` fresh columns, so
    that a direction that the old basis cannot see can enter.

    Determinism: as `range_finder` and `rsvd`, which it calls.
    Source: Halko, Martinsson, Tropp 2011 (arXiv:0909.4061), algorithms 4.4 and 5.1.
    """

    oversample: int = 10
    niter: int = 2
    warm_niter: int = 1

    def __post_init__(self) -> None:
        name = type(self).__name__
        require(is_count(self.oversample, 0), name, "oversample", "be an int >= 0", self.oversample)
        require(is_count(self.niter, 0), name, "niter", "be an int >= 0", self.niter)
        require(is_count(self.warm_niter, 1), name, "warm_niter", "be an int >= 1", self.warm_niter)

    def search(self, queries: Sequence[Query]) -> list[Bases]:
        found: dict[int, Bases] = {}
        one_sided = [i for i, query in enumerate(queries) if query.where.side != Side.BOTH]
        for warm in (False, True):
            indices = [i for i in one_sided if bool(bases_of(queries[i].held)) == warm]
            found |= zip(indices, self._search_list([queries[i] for i in indices], warm), strict=True)
        for i, query in enumerate(queries):
            if query.where.side == Side.BOTH:
                asked = _search(query, "left")
                left, right = both_vectors(
                    asked, oversample=self.oversample, niter=self._niter(asked.basis is not None)
                )
                found[i] = {"left": left, "right": right}
        return [found[i] for i in range(len(queries))]

    def _search_list(self, queries: Sequence[Query], warm: bool) -> list[Bases]:
        sides = ["left" if query.where.side == Side.LEFT else "right" for query in queries]
        searches = [_search(query, side) for query, side in zip(queries, sides, strict=True)]
        bases = left_vectors(searches, oversample=self.oversample, niter=self._niter(warm))
        return [{side: basis} for side, basis in zip(sides, bases, strict=True)]

    def _niter(self, warm: bool) -> int:
        return self.warm_niter if warm else self.niter


@dataclass(frozen=True)
class RandomFrame(Orthonormal):
    """An orthonormal basis drawn at random, on one side: of the columns of a normal matrix, which may point anywhere.

    Determinism: as `range_finder`, which it calls.
    """

    def search(self, queries: Sequence[Query]) -> list[Bases]:
        sides = [next(iter(query.where.basis_shapes.items())) for query in queries]
        searches = [
            Search(normal(*shape, query.seed, query.grad), shape[1], None, query.seed)
            for query, (_, shape) in zip(queries, sides, strict=True)
        ]
        bases = left_vectors(searches, oversample=0, niter=0)
        return [{side: basis} for (side, _), basis in zip(sides, bases, strict=True)]


def bases_of(subspace: Subspace | None) -> Bases:
    """The bases of a dense subspace; none for None."""
    return subspace.bases if isinstance(subspace, Dense) else {}


def _search(query: Query, side: str) -> Search:
    """The search for a basis on `side`: for left singular vectors of the gradient or of its transpose."""
    matrix = query.grad if side == "left" else query.grad.mT
    return Search(matrix, query.where.rank, bases_of(query.held).get(side), query.seed)


def _aligned(found: Bases, held: Bases) -> Bases:
    """`found` with each column turned to the side of the column it replaces: diag(P_new^T P_old) >= 0."""
    return {
        side: basis * torch.where((basis * held[side]).sum(dim=0) < 0, -1.0, 1.0).to(basis.dtype)
        if side in held
        else basis
        for side, basis in found.items()
    }

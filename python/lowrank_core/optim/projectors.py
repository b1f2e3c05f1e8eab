"""Projectors: which subspace the update lives in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from lowrank_core.checks import is_count, is_number, require
from lowrank_core.memory.geometry import Geometry, Side
from lowrank_core.ops import project, project_back, range_finder_list, rsvd
from lowrank_core.optim.codecs import work_dtype
from lowrank_core.optim.rules import Direction, Turn

Bases = dict[str, Tensor]  # "left": [m, r], "right": [n, r]; decoded to the working dtype


class Query(NamedTuple):
    """One gradient for which bases are wanted."""

    grad: Tensor  # [m, n], any floating dtype, finite, not zero
    geometry: Geometry
    held: Bases  # to be near; empty at first
    seed: int


class Space(Protocol):
    """Where an update lives, and the way in and out."""

    def down(self, grad: Tensor, bases: Bases) -> Tensor:
        """`grad` [m, n] in the space."""
        ...

    def up(self, direction: Direction, bases: Bases) -> Direction:
        """`direction` of the space as one of the weight."""
        ...


class Projector(Space, Protocol):
    """A space that is looked for."""

    @property
    def may_fail(self) -> bool:
        """True if `find` can raise on a finite gradient: all bases are then found before anything changes."""
        ...

    def find(self, queries: Sequence[Query]) -> list[Bases]:
        """Bases for each of `queries`, in one call where a kernel takes lists."""
        ...

    def turn(self, held: Bases, found: Bases) -> Turn:
        """The change from the bases `held` to `found`."""
        ...


@dataclass(frozen=True)
class NoProjection:
    """The whole space, of any shape: the plain path."""

    def down(self, grad: Tensor, bases: Bases) -> Tensor:
        return grad

    def up(self, direction: Direction, bases: Bases) -> Direction:
        return direction


@dataclass(frozen=True)
class _Subspace:
    """What every projector with orthonormal bases shares. `scale` multiplies the update on its way back."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        require(is_number(self.scale), type(self).__name__, "scale", "be a finite number", self.scale)

    def down(self, grad: Tensor, bases: Bases) -> Tensor:
        for side, basis in bases.items():
            grad = project(grad, basis, side=side)
        return grad

    def up(self, direction: Direction, bases: Bases) -> Direction:
        return Direction(_lift(direction.dense(self.scale), bases))

    def turn(self, held: Bases, found: Bases) -> Turn:
        change = {side: project(held[side], basis, side="left") for side, basis in found.items()}
        squares = {side: t.square() for side, t in change.items()}
        return Turn(lambda x: _lift(x, change), lambda x: _lift(x, squares))


@dataclass(frozen=True)
class ExactSVD(_Subspace):
    """The leading singular vectors, by torch.linalg.svd in the working precision.

    Determinism: D2 (within a stated bound; docs/numerics.md).
    Raises: torch.linalg.LinAlgError where LAPACK does not converge.
    """

    may_fail: ClassVar[bool] = True

    def find(self, queries: Sequence[Query]) -> list[Bases]:
        return [self._find(query) for query in queries]

    def _find(self, query: Query) -> Bases:
        rank, side = query.geometry.rank, query.geometry.side
        u, _, vh = torch.linalg.svd(query.grad.to(work_dtype(query.grad.dtype)), full_matrices=False)
        left, right = u[:, :rank], vh[:rank].mT
        sign = _leading_sign(right if side == Side.RIGHT else left)
        found = {}
        if side in (Side.BOTH, Side.LEFT):
            found["left"] = left * sign
        if side in (Side.BOTH, Side.RIGHT):
            found["right"] = right * sign
        return _aligned(found, query.held)


@dataclass(frozen=True)
class RandomizedSVD(_Subspace):
    """The leading singular vectors, by randomized subspace iteration started from the basis held.

    A first search takes `niter` power iterations, a warm one `warm_niter`. `oversample` columns are drawn
    fresh in either, so that a direction the old basis cannot see can enter.

    Determinism: as `range_finder` and `rsvd`, of which it is a call.
    Source: Halko, Martinsson, Tropp 2011 (arXiv:0909.4061), algorithms 4.4 and 5.1.
    """

    oversample: int = 10
    niter: int = 2
    warm_niter: int = 1
    may_fail: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        require(is_count(self.oversample, 0), name, "oversample", "be an int >= 0", self.oversample)
        require(is_count(self.niter, 0), name, "niter", "be an int >= 0", self.niter)
        require(is_count(self.warm_niter, 1), name, "warm_niter", "be an int >= 1", self.warm_niter)

    def find(self, queries: Sequence[Query]) -> list[Bases]:
        found: dict[int, Bases] = {}
        one_sided = [i for i, query in enumerate(queries) if query.geometry.side != Side.BOTH]
        for warm in (False, True):
            indices = [i for i in one_sided if bool(queries[i].held) == warm]
            found |= zip(indices, self._find_list([queries[i] for i in indices], warm), strict=True)
        for i, query in enumerate(queries):
            if query.geometry.side == Side.BOTH:
                found[i] = self._find_both(query)
        return [_aligned(found[i], query.held) for i, query in enumerate(queries)]

    def _find_list(self, queries: Sequence[Query], warm: bool) -> list[Bases]:
        sides = ["left" if query.geometry.side == Side.LEFT else "right" for query in queries]
        bases = range_finder_list(
            [query.grad if side == "left" else query.grad.mT for query, side in zip(queries, sides, strict=True)],
            [query.geometry.rank for query in queries],
            oversample=self.oversample,
            niter=self.warm_niter if warm else self.niter,
            bases=[query.held[side] for query, side in zip(queries, sides, strict=True)] if warm else None,
            seeds=[query.seed for query in queries],
        )
        return [{side: basis} for side, basis in zip(sides, bases, strict=True)]

    def _find_both(self, query: Query) -> Bases:
        niter = self.warm_niter if query.held else self.niter
        u, _, vh = rsvd(
            query.grad,
            query.geometry.rank,
            oversample=self.oversample,
            niter=niter,
            basis=query.held.get("left"),
            seed=query.seed,
        )
        return {"left": u, "right": vh.mT}


def _lift(x: Tensor, factors: Bases) -> Tensor:
    """F x, x F^T or F x F'^T, by the sides of `factors`: out of a subspace, or from one into another."""
    for side, factor in factors.items():
        x = project_back(x, factor, side=side)
    return x


def _leading_sign(basis: Tensor) -> Tensor:
    """[1, r] of +-1 that makes the largest entry by magnitude of each column positive, the first on ties."""
    leading = basis.gather(0, basis.abs().argmax(dim=0, keepdim=True))
    return torch.where(leading < 0, -1.0, 1.0).to(basis.dtype)


def _aligned(found: Bases, held: Bases) -> Bases:
    """`found` with each column turned to the side of the column it replaces: diag(P_new^T P_old) >= 0."""
    return {
        side: basis * torch.where((basis * held[side]).sum(dim=0) < 0, -1.0, 1.0).to(basis.dtype)
        if side in held
        else basis
        for side, basis in found.items()
    }

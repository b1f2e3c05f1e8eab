"""LDAdam's projector: one power iteration in each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lowrank_core.checks import is_number, require
from lowrank_core.memory.geometry import Geometry, Side
from lowrank_core.memory.storage import Layout, bare_fields, stored
from lowrank_core.optim.parts.products import orthonormal, project, project_back
from lowrank_core.optim.parts.projectors import Found, Query
from lowrank_core.optim.parts.projectors.orthonormal import RandomizedSVD, bases_of
from lowrank_core.optim.parts.subspaces.dense import Dense


@dataclass(frozen=True)
class Following(RandomizedSVD):
    """P <- qr(B B^T P) at each step, with B = rho P M / (1 - b1^t) + (1 - rho) A.

    A is the gradient and what the steps before have missed, M the first moment in P, t the number of finished steps.
    The first subspace is searched for in A.

    Source: Robert et al. 2024 (LDAdam, arXiv:2410.16103), algorithm 1, and its code, whose first search is exact.
    """

    each_step: ClassVar[bool] = True
    searches_first: ClassVar[bool] = False
    rho: float = 0.908
    beta1: float = 0.908

    def __post_init__(self) -> None:
        super().__post_init__()
        met = is_number(self.rho, 0.0) and self.rho <= 1
        require(met, type(self).__name__, "rho", "be a number in [0, 1]", self.rho)

    def layout(self, where: Geometry, weight: str) -> Layout:
        return stored(bare_fields(where), self.codec, weight)

    def find(self, queries: Sequence[Query]) -> list[Found]:
        return [
            Found(Dense(self.search([query])[0] if query.held is None else self.follow(query))) for query in queries
        ]

    def follow(self, query: Query) -> dict[str, Tensor]:
        """The basis held after one power iteration with B, which is not formed."""
        ((side, basis),) = bases_of(query.held).items()
        right, moment = query.where.side == Side.RIGHT, query.moments()["exp_avg"]
        a, moment = (query.grad.mT, moment.mT) if right else (query.grad, moment)
        correction: Any = 1 - self.beta1**query.step
        moment = moment * (self.rho / correction)
        # B^T P, as a matrix [r, q]; its largest entry is brought to 1, for the product with B is quadratic in B.
        # P^T P is not quite 1 where the basis is stored in bfloat16.
        seen = project(moment, project(basis, basis, "left"), "left")
        seen = seen.add_(project(a, basis, "left"), alpha=1 - self.rho)
        seen = seen / seen.abs().amax().clamp(min=torch.finfo(seen.dtype).tiny)
        found = project(a, seen.mT, "right").mul_(1 - self.rho)
        return {side: orthonormal(found.add_(project_back(project(moment, seen.mT, "right"), basis, "left")))}

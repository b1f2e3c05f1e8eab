"""COAP's projector: gradient steps on the basis between searches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_core.checks import is_count, require
from lowrank_core.memory.geometry import Side
from lowrank_core.optim.parts.products import near_one, orthonormal, project, project_back, total
from lowrank_core.optim.parts.projectors import Query
from lowrank_core.optim.parts.projectors.orthonormal import RandomizedSVD, bases_of
from lowrank_core.optim.parts.subspaces import Bases

RATE, CLIP = 0.1, 1.0  # published: of a step on the basis, and the norm that its gradient is clipped to
TURN = 0.05  # length of a normalized step, relative to the basis; ours
_LEAST = 1e-8  # norm of a row, relative to the gradient's root mean square, below which a cosine is damped


@dataclass(frozen=True)
class Correlated(RandomizedSVD):
    """A warm search at every `reproject_factor`-th refresh, a step of Eq. 5 on the basis at the others.

    The step follows the gradient, in P, of L = mse(G P P^T, G) (1 - c), where c is the mean cosine between the rows of
    G and those of the first moment lifted to G's space. "reference": P - 0.1 g, with |g| clipped to 1; no
    orthonormalization follows. At usual gradients it hardly moves P, for L is quadratic in G. `normalized`: G has root
    mean square 1, the step is 0.05 |P| long, and what comes out is orthonormalized.

    Source: Xiao et al. 2024 (COAP, arXiv:2412.00071), equations 5 and 6, the former in closed form, and its code.
    """

    reproject_factor: int = 5
    normalized: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        factor = self.reproject_factor
        require(is_count(factor, 1), type(self).__name__, "reproject_factor", "be an int >= 1", factor)

    def search(self, queries: Sequence[Query]) -> list[Bases]:
        followed = [query.held is not None and query.refreshes % self.reproject_factor > 0 for query in queries]
        searched = iter(super().search([query for query, step in zip(queries, followed, strict=True) if not step]))
        return [self.follow(query) if step else next(searched) for query, step in zip(queries, followed, strict=True)]

    def follow(self, query: Query) -> Bases:
        """The basis held after a step of Eq. 5."""
        ((side, basis),) = bases_of(query.held).items()
        right, moment = query.where.side == Side.RIGHT, query.moments()["exp_avg"]
        grad, exponent = near_one(query.grad.to(basis.dtype))
        a, moment = (grad, moment) if right else (grad.mT, moment.mT)
        slope, size = slope_of(a, basis, moment, by_row=right)
        length = torch.linalg.vector_norm(slope, dtype=torch.float64)
        least = torch.finfo(torch.float64).tiny
        if self.normalized:
            step = TURN * torch.linalg.vector_norm(basis, dtype=torch.float64) / length.clamp(min=least)
            return {side: orthonormal(basis - slope * step.to(basis.dtype))}
        # The slope of L itself is `size`^2 that of L over it, and what is clipped is that.
        inverse = 2.0 ** (-2 * exponent) / size.square()
        step = RATE / torch.maximum(inverse, length / CLIP).clamp(min=least)
        return {side: basis - slope * step.to(basis.dtype)}


def slope_of(a: Tensor, basis: Tensor, moment: Tensor, *, by_row: bool) -> tuple[Tensor, Tensor]:
    """The gradient of Eq. 5 over size^2 by the basis, and size, the root mean square of `a`.

    Args:
      a: [p, q] of the working dtype, products of whose entries are numbers; not zero.
      basis: Q [q, r], any columns.
      moment: M [p, r].
      by_row: whether the cosines are those of rows of `a` and M Q^T, or of their columns.

    Of a / size in the place of a, with L = a Q: mse = |L Q^T - a|^2 / (p q) and
      d mse = 2 / (p q) [Q L^T L - a^T L + a^T L (Q^T Q - 1)]
      d c   = a^T (M / (h g)) - Q M^T (M s / (h^3 g)), over p, by rows; a^T M / (h g) - Q M^T M s / (h^3 g), over q, by
              columns: h and g are the norms of those of M Q^T and a, s their products
    so that nothing of the size of a is made.
    """
    (p, q), dim = a.shape, 1 if by_row else 0
    norms = torch.linalg.vector_norm(a, dim=dim).double()
    size = (total(norms.square()) / (p * q)).sqrt()
    unit = (1 / size).to(basis.dtype)
    moment = moment / torch.linalg.vector_norm(moment, float("inf")).clamp(min=torch.finfo(moment.dtype).tiny)
    low = project(a, basis, "right") * unit
    gram, inner = project(basis, basis, "left"), project(low, low, "left")
    g = (norms / size).clamp(min=_LEAST).to(basis.dtype)
    if by_row:
        h = _norms((project(moment, gram, "right") * moment).sum(dim=1))
        inside = (moment * low).sum(dim=1)
        weighted = moment / (h * g)[:, None]
    else:
        square = project(moment, moment, "left")
        lifted = project_back(square, basis, "left")
        h = _norms((lifted * basis).sum(dim=1))
        weighted = moment
    both = project(a, torch.cat([low, weighted], dim=1), "left").mT * unit
    seen, toward = both.tensor_split(2, dim=1)
    if by_row:
        away = project_back(project(moment * (inside / (h**3 * g))[:, None], moment, "left"), basis, "left")
    else:
        inside = (basis * toward).sum(dim=1)
        away = (inside / (h**3 * g))[:, None] * lifted
        toward = toward / (h * g)[:, None]
    cosine = total(inside / (h * g)) / len(g)
    mse = (1 - (2 * total(inner.diagonal()) - total((inner * gram).sum(dim=1))) / (p * q)).clamp(min=0)
    of_mse = 2 / (p * q) * (project_back(inner, basis, "left") - 2 * seen + project(seen, gram, "right"))
    of_cosine = (toward - away) / len(g)
    return (1 - cosine).to(a.dtype) * of_mse - mse.to(a.dtype) * of_cosine, size


def _norms(squares: Tensor) -> Tensor:
    return squares.clamp(min=0).sqrt().clamp(min=_LEAST)

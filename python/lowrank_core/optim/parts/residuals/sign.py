"""The sign of what the subspace does not hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowrank_core.checks import is_number, require
from lowrank_core.optim.parts.residuals import Seen
from lowrank_core.optim.parts.residuals.drop import Scaled, kernel_of
from lowrank_core.optim.parts.rules import Direction
from lowrank_core.optim.parts.subspaces.selection import Selection
from lowrank_core.optim.slots import State


@dataclass(frozen=True)
class SignRest(Scaled):
    """N in the subspace, and sign_scale sign(G - P R) outside of it.

    Behind a basis the sign of what is below 8 u sqrt(r) max|G| is 0: it is nothing but rounding. What a selection
    leaves over is exact.

    Source: Zmushko et al. 2024 (FRUGAL, arXiv:2411.07837), with signSGD as its state-free rule; the threshold is ours.
    """

    sign_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(is_number(self.sign_scale, 0.0), type(self).__name__, "sign_scale", "be a number >= 0", self.sign_scale)

    def complete(self, seen: Seen, state: State) -> Direction:
        inside, subspace = seen.direction.dense(self.scale), seen.subspace
        if isinstance(subspace, Selection):
            return Direction(subspace.put_(seen.grad.sign().mul_(self.sign_scale), inside))
        rest = subspace.up(seen.low).neg_().add_(seen.grad)
        noise = 8 * (torch.finfo(rest.dtype).eps / 2) * subspace.rank**0.5 * largest(seen.grad)
        signs = torch.where(rest.abs() > noise, rest.sign(), 0.0).mul_(self.sign_scale)
        return Direction(signs.add_(subspace.up(inside)))

    def kernel(self) -> dict[str, Any] | None:
        return kernel_of("sign", self.scale, residual_scale=self.sign_scale)


def largest(matrix: Tensor) -> Tensor:
    """0-d: the largest magnitude."""
    return torch.maximum(matrix.amax(), -matrix.amin())

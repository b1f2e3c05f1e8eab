"""LDAdam's residual: what a step misses is added to the next gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lowrank_core.memory.geometry import Geometry
from lowrank_core.memory.storage import Layout, Storage, error_fields, stored
from lowrank_core.optim.parts.residuals import Seen
from lowrank_core.optim.parts.residuals.drop import Scaled, kernel_of
from lowrank_core.optim.parts.rules import Direction, Moments
from lowrank_core.optim.parts.subspaces import Subspace
from lowrank_core.optim.slots import State


@dataclass(frozen=True)
class FedBack(Scaled):
    """A = G + E is stepped, and E <- A - P R + b1 / (1 - b1) (P_old M_old - P T M_old): what P holds neither of the
    gradient nor of the first moment.

    With the first moment after the step, M = b1 T M_old + (1 - b1) R, that is A - (P M - b1 P_old M_old) / (1 - b1).

    Source: Robert et al. 2024 (LDAdam, arXiv:2410.16103), algorithm 1.
    """

    beta1: float = 0.908
    storage: Storage | None = None
    weight: str = "float32"  # its dtype, which decides how E is stored

    def layout(self, where: Geometry) -> Layout:
        fields = error_fields(where)
        return fields if self.storage is None else stored(fields, self.storage, self.weight)

    def enter(self, grad: Tensor, state: State) -> Tensor:
        error: Tensor = state["residual.error"]
        return grad + error.to(grad.dtype)

    def leave(self, old: Subspace, moments: Callable[[], Moments]) -> Tensor | None:
        """b1 / (1 - b1) P_old M_old."""
        return old.up(moments()["exp_avg"]).mul_(self.beta1 / (1 - self.beta1))

    def complete(self, seen: Seen, state: State) -> Direction:
        missed = seen.grad - seen.subspace.up(seen.direction.numerator).mul_(1 / (1 - self.beta1))
        state["residual.error"].copy_(missed if seen.left is None else missed.add_(seen.left))
        return Direction(seen.subspace.up(seen.direction.dense()))

    def kernel(self) -> dict[str, Any] | None:
        return kernel_of("drop", 1.0)

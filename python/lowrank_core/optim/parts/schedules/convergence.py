"""A refresh as soon as the gradient in the subspace has faded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_core.checks import is_number, require
from lowrank_core.memory.storage import Layout, convergence_fields
from lowrank_core.optim.parts.products import norms_of
from lowrank_core.optim.parts.rules import Turn
from lowrank_core.optim.parts.schedules.fixed_gap import FixedGap
from lowrank_core.optim.slots import Slot, State

CHECK_EVERY = 10  # steps in a subspace after which its norms are read, each time
MEMORY = 0.9  # of the mean of norms, per step


@dataclass(frozen=True)
class Convergence(FixedGap):
    """Refreshes as `FixedGap` does, and sooner where a mean of |R| has fallen to `share` of the first |R| there.

    The norms stay where the gradients are. They are read every tenth step in a subspace; 0 never refreshes sooner.

    Source: Refael et al. 2024 (AdaRankGrad, arXiv:2410.17881), its inner loop; that the bound is relative to the first
      norm, the mean and the numbers are ours.
    """

    share: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        met = is_number(self.share, 0.0) and self.share < 1
        require(met, "Convergence", "convergence", "be a number in [0, 1)", self.share)

    def layout(self) -> Layout:
        return {**super().layout(), **convergence_fields()}

    def due(self, slot: Slot, step: int, state: State) -> bool:
        if super().due(slot, step, state):
            return True
        since = step - int(state["proj.last_look"])
        return since > 0 and since % CHECK_EVERY == 0 and self.converged(state)

    def converged(self, state: State) -> bool:
        """True if gradients have faded in the subspace. Waits for a device."""
        first, mean = state["convergence.first"], state["convergence.mean"]
        return bool((first > 0) & (mean <= self.share * first))

    def observe(self, states: Sequence[State], lows: Sequence[Tensor]) -> None:
        norms = norms_of(lows)
        firsts, means = ([state[f"convergence.{key}"] for state in states] for key in ("first", "mean"))
        first, mean = torch.stack(firsts), torch.stack(means)
        torch._foreach_copy_(means, torch.where(first == 0, norms, torch.lerp(norms, mean, MEMORY)).unbind())
        torch._foreach_copy_(firsts, torch.where(first == 0, norms, first).unbind())

    def looked(self, state: State, step: int, turn: Turn | None) -> None:
        super().looked(state, step, turn)
        for norm in (state["convergence.first"], state["convergence.mean"]):
            norm.zero_()

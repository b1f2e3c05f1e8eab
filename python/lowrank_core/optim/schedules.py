"""Schedules: when the subspace is looked for again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from lowrank_core.checks import is_count, require
from lowrank_core.optim.codecs import State


class Schedule(Protocol):
    """Decides from the count of finished steps, and from what its projector left in the state."""

    def due(self, step: int, state: State) -> bool:
        """True if the basis of a weight with `step` finished steps is to be refreshed before the next one.

        On an accelerator the loop asks with an upper bound of `step` first (skips it has not read yet), and
        before it acts with the exact count.
        """
        ...


@dataclass(frozen=True)
class FixedGap:
    """Refreshes before step 0, gap, 2 gap, ... (GaLore's `update_proj_gap`; unit: optimizer steps)."""

    gap: int = 200

    def __post_init__(self) -> None:
        require(is_count(self.gap, 1), "FixedGap", "update_proj_gap", "be an int >= 1", self.gap)

    def due(self, step: int, state: State) -> bool:
        return step % self.gap == 0

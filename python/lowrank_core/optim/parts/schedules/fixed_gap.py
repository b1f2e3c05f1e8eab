"""A refresh after every so many steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lowrank_core.checks import is_count, require
from lowrank_core.memory.storage import Layout, refresh_fields
from lowrank_core.optim.parts.rules import Turn
from lowrank_core.optim.parts.schedules import Stagger, check_stagger, takes_turns
from lowrank_core.optim.slots import Slot, State


@dataclass(frozen=True)
class FixedGap:
    """Refreshes before step 0, gap, 2 gap, ... (GaLore's `update_proj_gap`; unit: optimizer steps).

    With `stagger` the weights of a group take turns after step 0: the place of a weight in its group decides at which
    part of the gap its next refresh comes, and from then on it is refreshed every `gap` steps. "auto" does so where 8
    weights or more have a gap of 8 or more.
    """

    gap: int = 200
    stagger: Stagger = "auto"

    def __post_init__(self) -> None:
        require(is_count(self.gap, 1), "FixedGap", "update_proj_gap", "be an int >= 1", self.gap)
        check_stagger("FixedGap", self.stagger)

    def layout(self) -> Layout:
        return refresh_fields()

    def due(self, slot: Slot, step: int, state: State) -> bool:
        number, count = slot.turn
        phase = (number + 1) * self.gap // count if takes_turns(self.stagger, slot, self.gap) else 0
        last = int(state["proj.last_look"])
        # A count of the turns that have passed misses none, even if a step is not asked about or the gap is edited.
        passed = (step - phase) // self.gap > (last - phase) // self.gap
        return passed or state["proj.refreshes"] == 0

    @property
    def observes(self) -> bool:
        return type(self).observe is not FixedGap.observe

    def observe(self, states: Sequence[State], lows: Sequence[Tensor]) -> None:
        pass

    def looked(self, state: State, step: int, turn: Turn | None) -> None:
        state["proj.last_look"] = step

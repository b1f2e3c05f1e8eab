"""No search at all."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lowrank_core.memory.storage import Layout, refresh_fields
from lowrank_core.optim.parts.rules import Turn
from lowrank_core.optim.slots import Slot, State


@dataclass(frozen=True)
class Never:
    """For projectors that choose in each step, or that have nothing to look for."""

    def layout(self) -> Layout:
        return refresh_fields()

    def due(self, slot: Slot, step: int, state: State) -> bool:
        return False

    def observe(self, state: State, low: Tensor) -> None:
        pass

    def looked(self, state: State, step: int, turn: Turn | None) -> None:
        state["proj.last_look"] = step

"""No search at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowrank_core.memory.storage import Layout, refresh_fields
from lowrank_core.optim.parts.rules import Turn
from lowrank_core.optim.slots import Slot, State


@dataclass(frozen=True)
class Never:
    """For projectors that choose in each step, or that have nothing to look for."""

    observes: ClassVar[bool] = False

    def layout(self) -> Layout:
        return refresh_fields()

    def due(self, slot: Slot, step: int, state: State) -> bool:
        return False

    def observe(self, states: Sequence[State], lows: Sequence[Tensor]) -> None:
        pass

    def looked(self, state: State, step: int, turn: Turn | None) -> None:
        state["proj.last_look"] = step

"""Schedules: when to look for the subspace again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from lowrank_core.checks import require
from lowrank_core.memory.storage import Layout
from lowrank_core.optim.parts.rules import Turn
from lowrank_core.optim.slots import Slot, State

Stagger = bool | str  # True, False or "auto"
_MANY = 8  # matrices, and steps of a gap, from which on "auto" lets the matrices take turns


class Schedule(Protocol):
    """Decides from the count of finished steps, and from what it left in the state."""

    def layout(self) -> Layout:
        """What it keeps in the state, with what every schedule keeps: `refresh_fields`."""
        ...

    def due(self, slot: Slot, step: int, state: State) -> bool:
        """True if the subspace of a weight with `step` finished steps is to be looked for before the next one.

        On an accelerator the loop first asks with an upper bound of `step`, because it has not read yet which steps
        were skipped. Before it acts it asks with the exact count.
        """
        ...

    @property
    def observes(self) -> bool:
        """True if `observe` does something."""
        ...

    def observe(self, states: Sequence[State], lows: Sequence[Tensor]) -> None:
        """Looks at gradients in their subspaces, at every step. Waits for no device."""
        ...

    def looked(self, state: State, step: int, turn: Turn | None) -> None:
        """Notes a search after `step` finished steps.

        `turn` leads from the old subspace to the new one. It is None for a first one, and if the gradient was zero and
        no subspace was found.
        """
        ...


def check_stagger(op: str, stagger: Stagger) -> None:
    """Raises ValueError unless `stagger` is True, False or "auto"."""
    require(isinstance(stagger, bool) or stagger == "auto", op, "stagger", 'be True, False or "auto"', stagger)


def takes_turns(stagger: Stagger, slot: Slot, gap: int) -> bool:
    """Whether the weight of `slot` is refreshed at a time of its own; "auto": in large groups, with long gaps."""
    return slot.turn[1] >= _MANY and gap >= _MANY if stagger == "auto" else bool(stagger)

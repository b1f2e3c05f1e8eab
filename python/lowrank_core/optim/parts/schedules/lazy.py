"""Refreshes that become rarer where the subspace stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowrank_core.checks import is_count, is_number, require
from lowrank_core.memory.storage import Layout, lazy_fields, refresh_fields
from lowrank_core.optim.parts.rules import Turn
from lowrank_core.optim.parts.schedules import Stagger, check_stagger, takes_turns
from lowrank_core.optim.slots import Slot, State

MAX_GAP = 10_000  # a gap grows no further: a run of that length should look again


@dataclass(frozen=True)
class LazyGap:
    """The next refresh comes `gap` steps after the last search, or `gap` times a power of `gamma`.

    Each refresh after the first measures how much of the old subspace the new one keeps: the mean cosine of the
    principal angles between them, in [0, 1]. Once `queue_size` of these are there and their mean reaches
    `cos_threshold`, the gap grows by `gamma` and counting starts anew. It never shrinks.

    With `stagger` the first interval of a weight is the part of the gap that its place in its group decides.

    Source: Zhang et al. 2024 (Q-GaLore, arXiv:2407.08296), section 3.2. Deviations from its code: all directions count
      and not the first alone, no sign enters, the queue is emptied when the gap grows, and the gap has a limit.
    """

    observes: ClassVar[bool] = False
    gap: int = 200
    stagger: Stagger = "auto"
    cos_threshold: float = 0.4
    queue_size: int = 5
    gamma: float = 2

    def __post_init__(self) -> None:
        name = type(self).__name__
        require(is_count(self.gap, 1), name, "update_proj_gap", "be an int >= 1", self.gap)
        check_stagger(name, self.stagger)
        require(is_number(self.cos_threshold, 0.0), name, "cos_threshold", "be a number >= 0", self.cos_threshold)
        require(is_count(self.queue_size, 1), name, "queue_size", "be an int >= 1", self.queue_size)
        require(is_number(self.gamma, 1.0), name, "gamma", "be a number >= 1", self.gamma)

    def layout(self) -> Layout:
        return refresh_fields() | lazy_fields(self.queue_size)

    def due(self, slot: Slot, step: int, state: State) -> bool:
        if state["proj.refreshes"] == 0:
            return True
        number, count = slot.turn
        first = takes_turns(self.stagger, slot, self.gap) and state["proj.refreshes"] == 1
        wait = max(1, (number + 1) * self.gap // count) if first else self.interval(state["schedule.grown"])
        return bool(step >= int(state["proj.last_look"]) + wait)

    def interval(self, grown: int) -> int:
        """Steps from one refresh to the next, after the gap has grown that many times."""
        return int(min(self.gap * self.gamma**grown, max(self.gap, MAX_GAP)))

    def observe(self, states: Sequence[State], lows: Sequence[Tensor]) -> None:
        pass

    def looked(self, state: State, step: int, turn: Turn | None) -> None:
        state["proj.last_look"] = step
        if turn is None:
            return
        cosines, count = state["schedule.cosines"], state["schedule.count"]
        cosines.copy_(cosines.roll(1))
        cosines[0] = turn.cosine()
        state["schedule.count"] = min(count + 1, self.queue_size)
        full = state["schedule.count"] == self.queue_size
        grown = state["schedule.grown"]
        if full and float(cosines.double().mean()) >= self.cos_threshold and self.interval(grown) < MAX_GAP:
            state["schedule.grown"], state["schedule.count"] = grown + 1, 0

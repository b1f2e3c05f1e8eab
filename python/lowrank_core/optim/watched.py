"""The optimizer that a `Monitor` watches, of this package or another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from lowrank_core.optim.base import StateOptimizer
from lowrank_core.optim.lisa import LISA
from lowrank_core.optim.slots import Slot, State, slots
from lowrank_core.optim.states import state_of


class Watched:
    """Weights, their states and the numbers of steps.

    `optimizer` is the one whose hooks tell of a step: within a `LISA` the optimizer that it stands in front of, since
    states may be gone after LISA's own step. LISA and optimizers of torch have one number for all weights, as states
    start anew, or hold none; of torch's it is counted from what the states said first.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._lisa = optimizer if isinstance(optimizer, LISA) else None
        self.optimizer = optimizer.optimizer if isinstance(optimizer, LISA) else optimizer
        self.ours = self.optimizer if isinstance(self.optimizer, StateOptimizer) else None
        numbers = (state.get("step", 0) for state in self.optimizer.state.values()) if self.ours is None else ()
        self._count = int(max(numbers, default=0))

    def slots(self) -> Iterable[Slot]:
        """Every weight; of torch's optimizers none is projected."""
        return self._plain() if self.ours is None else self.ours.slots()

    def _plain(self) -> Iterator[Slot]:
        first = 0
        for group in self.optimizer.param_groups:
            yield from slots({**group, "seed": 0, "stacked": False}, first, first, lambda *_: (None, ""))
            first += len(group["params"])

    def state(self, slot: Slot) -> State:
        """Of a weight of this package's; of another there is nothing to read."""
        return {} if self.ours is None else state_of(self.ours.state, slot)

    def steps(self, among: Iterable[Slot]) -> int:
        """The most steps that one of `among` has taken."""
        if self._lisa is not None:
            return self._lisa.steps
        return self._count if self.ours is None else max(map(self.ours.finished_steps, among), default=0)

    def finished(self, slot: Slot) -> int:
        """Before a step: what `number` is to be told after it."""
        return 0 if self.ours is None else self.ours.finished_steps(slot)

    def number(self, slot: Slot, before: int) -> int | None:
        """Right after a step: its number, or None where the weight has taken none."""
        if self.ours is None:
            stepped, number = slot.param.grad is not None, self._count + 1
        else:
            number = self.ours.finished_steps(slot)
            stepped = number > before
        if not stepped:
            return None
        return number if self._lisa is None else self._lisa.steps + 1

    def ended(self) -> None:
        """A step is over."""
        self._count += 1

"""The gradients of a bucket before anything has changed: whole, in their subspaces, or as sketches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lowrank_core.optim.slots import Slot


@dataclass(eq=False)
class Draft:
    """The part of a step that is known before anything is changed: gradients, whole or already in their subspaces.

    Everything before the rule is linear in the gradient, so drafts of several backward passes may be added up.
    What changes a draft in place overwrites its tensors: only who owns them may call it.
    """

    slots: list[Slot] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)  # matrices of projected weights; untouched, not yet negated
    low: list[Tensor] | None = None  # the same in the subspaces held, in the working dtype; negated to maximize
    finite: bool = False  # True: all of `grads` are known to be
    freed: bool = False  # True: `grads` have shapes only, and `low` is all that is left of them
    bases: list[Tensor] | None = None  # those of the subspaces held, where they are few enough to be kept for the step
    lifts: list[Callable[[Tensor], Tensor]] | None = None  # `low` are sketches, of which these give gradients back

    def add(self, slot: Slot, grad: Tensor) -> None:
        """Takes up one more parameter."""
        self.slots.append(slot)
        self.grads.append(grad)

    def seeds(self, drawn: bool) -> list[int]:
        """The seeds of the draws of each weight; zeros if nothing is `drawn`."""
        return [slot.draw(0).seed for slot in self.slots] if drawn else [0] * len(self.slots)

    def extend(self, other: Draft) -> None:
        """Takes up the parameters of another draft, which must be in its subspaces as this one is."""
        self.finite = other.finite and (self.finite or not self.slots)
        self.freed, self.bases = other.freed, None
        self.low = other.low if not self.slots else None if other.low is None else [*(self.low or []), *other.low]
        self.lifts = None if other.lifts is None else [*(self.lifts or []), *other.lifts]
        self.slots += other.slots
        self.grads += other.grads

    def free_(self) -> None:
        """Lets go of the gradients. Whoever reads one all the same finds that no entry is a number."""
        self.grads = [torch.full((), torch.nan, dtype=g.dtype, device=g.device).expand(g.shape) for g in self.grads]
        self.freed = True

    @property
    def settled(self) -> bool:
        """True if the gradients were let go of for their parts in the subspaces held, which are those of the step."""
        return self.freed and self.lifts is None

    def gradients(self, some: slice = slice(None)) -> Iterator[Tensor]:
        """The whole gradients, one after the other; of sketches what these give back, which nothing else holds."""
        if self.lifts is None or self.low is None:
            yield from self.grads[some]
        else:
            for lift, low in zip(self.lifts[some], self.low[some], strict=True):
                yield lift(low)

    @property
    def evidence(self) -> list[Tensor]:
        """What is left of each gradient, and not finite if the gradient was not."""
        return self.low if self.freed and self.low is not None else self.grads

    def add_(self, other: Draft) -> None:
        """Adds the draft of another backward pass, of the same slots, to this one.

        Raises:
          ValueError: one of them is in its subspaces and the other one is not, or they are of other slots.
        """
        if [slot.key for slot in self.slots] != [slot.key for slot in other.slots]:
            raise ValueError("Draft: `other` must be of the same parameters, got others")
        if (self.low is None, self.freed, self.settled) != (other.low is None, other.freed, other.settled):
            raise ValueError("Draft: `other` must be in its subspaces as this one is, got only one that is")
        if self.low is not None and other.low is not None:
            torch._foreach_add_(self.low, other.low)
        if not self.freed:
            torch._foreach_add_(self.grads, other.grads)
        self.finite = False  # a sum may overflow

    def scale_(self, factor: float | Tensor) -> None:
        """Multiplies the draft, as the mean over backward passes does. A 0-d tensor is not read."""
        for tensor in (*(self.low or ()), *(() if self.freed else self.grads)):
            tensor.mul_(factor.to(tensor.device) if isinstance(factor, Tensor) else factor)
        self.finite = False

    def squared_norm(self) -> Tensor:
        """0-d float64 on the gradients' device: |G|_F^2 of all of them together. Does not wait."""
        squares = [torch.linalg.vector_norm(grad, dtype=torch.float64).square() for grad in self.grads]
        return torch.stack(squares).sum() if squares else torch.zeros((), dtype=torch.float64)

    def each(self) -> Iterator[Draft]:
        """The draft of each of its slots."""
        for i in range(len(self.slots)):
            yield self._some([i])

    def part(self, chosen: list[bool]) -> tuple[Draft, Draft]:
        """The slots that are `chosen`, and the others."""
        yes, no = ([i for i, choice in enumerate(chosen) if choice is wanted] for wanted in (True, False))
        return self._some(yes), self._some(no)

    def _some(self, at: list[int]) -> Draft:
        low = None if self.low is None else [self.low[i] for i in at]
        lifts = None if self.lifts is None else [self.lifts[i] for i in at]
        slots, grads = [self.slots[i] for i in at], [self.grads[i] for i in at]
        return Draft(slots, grads, low, self.finite, self.freed, lifts=lifts)

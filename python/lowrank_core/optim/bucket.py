"""Parameters that are stepped alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowrank_core.optim.devices import stays_on_device
from lowrank_core.optim.draft import Draft
from lowrank_core.optim.parts import Parts
from lowrank_core.optim.parts.codecs import Codec, Float32
from lowrank_core.optim.slots import Draw, Slot, State
from lowrank_core.optim.watch import Watch

_TOGETHER = 2**21  # elements of matrices whose directions are held at the same time


class Alike(NamedTuple):
    """What the parameters of a bucket have in common besides their group."""

    projected: bool
    two_sided: bool  # whether their subspaces have a basis on each side
    as_matrix: bool  # whether their memory can be stepped as the matrix that is projected
    due: bool  # whether their subspaces are to be looked for before the step
    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Bucket:
    """What the parameters of one bucket have in common: the fields of `Alike`, a group, its parts and numbers."""

    parts: Parts
    projected: bool
    two_sided: bool
    as_matrix: bool
    due: bool
    device: torch.device
    dtype: torch.dtype
    lr: float | Tensor  # a tensor where one was given that lives on an accelerator: it is not read
    weight_decay: float
    maximize: bool
    rounding: str
    nonfinite: str
    watches: tuple[Watch, ...] = ()

    @property
    def codec(self) -> Codec:
        """The codec of their moments."""
        return self.parts.moment_codec if self.projected else self.parts.plain_codec

    @property
    def in_step(self) -> bool:
        """True if subspaces are chosen as a part of the step, and not looked for before."""
        return self.projected and self.parts.projector.each_step and not self.due

    @property
    def draws(self) -> bool:
        """True if a step takes random words."""
        return self.rounding != "nearest" or not isinstance(self.codec, Float32)

    def clock(self, slot: Slot, state: State, step: float | Tensor) -> Draw:
        """What the rule takes for the number of step number `step`, and the seed of the words that are drawn by it.

        Both start again with the moments, where a refresh resets them.
        """
        if not self.projected or not self.parts.transport.restarts:
            return slot.draw(step)
        return Draw(slot.period_seed(state["proj.refreshes"]), step - state["proj.last_refresh"])

    def clocks(self, draft: Draft, states: list[State]) -> tuple[list[int], list[int]]:
        """`clock` of the coming step of each weight: numbers, and seeds where something is drawn."""
        steps = [int(state["step"]) + 1 for state in states]
        if not self.projected or not self.parts.transport.restarts:
            return steps, draft.seeds(self.draws)
        numbers = [step - int(state["proj.last_refresh"]) for step, state in zip(steps, states, strict=True)]
        if not self.draws:
            return numbers, [0] * len(numbers)
        places = zip(draft.slots, states, strict=True)
        return numbers, [slot.period_seed(state["proj.refreshes"]) for slot, state in places]

    @classmethod
    def of(cls, group: dict[str, Any], parts: Parts, alike: Alike, watches: tuple[Watch, ...] = ()) -> Bucket:
        """The bucket of `group` for weights that are `alike` in the fields that it does not decide."""
        lr = group["lr"] if alike.projected else plain_rate(group)
        return cls(
            parts=parts,
            lr=lr if stays_on_device(lr) else float(lr),
            weight_decay=float(group["weight_decay"]),
            maximize=group["maximize"],
            rounding=group["rounding"],
            nonfinite=group["nonfinite"],
            watches=watches,
            **alike._asdict(),
        )


def batches(size: int, count: int) -> Iterator[slice]:
    """Slices that cover `count` places, of at most `size` each."""
    return (slice(start, start + size) for start in range(0, count, size))


def runs(slots: list[Slot]) -> Iterator[slice]:
    """Slices of neighbours with `_TOGETHER` elements at most, or of one weight; in their order, which counts where
    weights share memory."""
    start, held = 0, 0
    for stop, slot in enumerate(slots):
        size = prod(slot.weight.shape)
        if stop > start and held + size > _TOGETHER:
            yield slice(start, stop)
            start, held = stop, 0
        held += size
    yield slice(start, len(slots))


def plain_rate(group: dict[str, Any]) -> float | Tensor:
    """The rate of what is not projected: `lr`, or `plain_lr` times what a scheduler of torch's has made of `lr`.

    Its share is that of the largest rate where the scheduler names one, else of the first one.
    """
    lr: float | Tensor = group["lr"]
    plain: float | None = group.get("plain_lr")
    if plain is None:
        return lr
    full: float | Tensor = group.get("max_lr", group.get("initial_lr", lr))
    return plain if full is lr or full == 0 else plain * (lr / full)

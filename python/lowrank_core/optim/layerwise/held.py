"""What is held of one weight's gradients between backward passes and a step."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from torch import Tensor

from lowrank_core.memory.geometry import Geometry, Side
from lowrank_core.optim.bucket import Bucket
from lowrank_core.optim.layerwise.norms import COLUMNS, estimate, sketch, squared_norm
from lowrank_core.optim.parts import Parts
from lowrank_core.optim.seeds import mix_seed
from lowrank_core.optim.slots import Draft, Slot, State

_SKETCH = 0x5C  # sets the draws of sketches apart from all others of a weight


class Way(Enum):
    """How a gradient is taken out of backward."""

    SUBSPACE = "in its subspace"
    WHOLE = "whole"
    AT_ONCE = "stepped at once"


def way_of(parts: Parts, projected: bool, due: bool) -> Way:
    """How the gradient of a weight with these `parts` is taken; `due`: a subspace is looked for before the step."""
    if not projected:
        return Way.WHOLE
    if parts.residual.needs_whole:
        return Way.AT_ONCE
    # A search, and feedback, are not linear in the gradient: they wait for the whole sum.
    return Way.WHOLE if due or parts.projector.each_step or parts.residual.feeds_back else Way.SUBSPACE


@dataclass(eq=False)
class Held:
    """The gradients of one weight, added up over backward passes."""

    bucket: Bucket
    draft: Draft  # of this weight alone
    passes: int = 1
    square: Tensor | None = None  # 0-d float64, |G|_F^2 of the one gradient that was let go of
    sketch: Tensor | None = None  # of the sum
    seed: int = 0  # of the sketch

    @property
    def slot(self) -> Slot:
        """The weight."""
        return self.draft.slots[0]

    def measure(self, where: Geometry, step: int) -> None:
        """Notes what the norm needs before the gradient is let go of; `step` keys the sketch."""
        (grad,), slot = self.draft.grads, self.slot
        self.seed = mix_seed(slot.seed, slot.index, step, _SKETCH)
        self.square, self.sketch = squared_norm(grad), sketch(grad, where, self.seed)

    def add_(self, other: Held) -> None:
        """Adds the gradient of another backward pass."""
        self.draft.add_(other.draft)
        self.passes += other.passes
        if self.sketch is not None and other.sketch is not None:
            self.sketch += other.sketch

    def scale_(self, factor: float | Tensor) -> None:
        """Multiplies what is held."""
        self.draft.scale_(factor)
        if self.square is not None and self.sketch is not None:
            device = self.square.device
            factor = factor.to(device) if isinstance(factor, Tensor) else factor
            self.square, self.sketch = self.square * factor**2, self.sketch * factor

    def squared_norm(self, state: State) -> tuple[Tensor, Tensor | None]:
        """0-d float64 |G|_F^2, and the variance where it is an estimate."""
        if not self.draft.freed or self.draft.low is None:
            return squared_norm(self.draft.grads[0]), None
        if self.passes == 1 and self.square is not None:
            return self.square, None
        if self.sketch is None:
            raise RuntimeError("step: a gradient that was let go of must have been measured before, got none")
        subspace = self.bucket.parts.projector.held(self.slot, state)
        return estimate(self.draft.low[0], self.sketch, subspace, self.slot.where(state), self.seed)


class GradientBytes(NamedTuple):
    """Bytes of gradients, as planned."""

    ordinary: int  # all of them, which ordinary training holds at step()
    held: int  # held at step() where no subspace is due
    due: int  # held at step() where all subspaces are due, as in the first one
    passing: int  # the largest gradient, which is there before it is taken

    @property
    def share(self) -> float:
        """The peak against ordinary training's where no subspace is due, in [0, 1]."""
        return min(1.0, (self.held + self.passing) / max(1, self.ordinary))


def planned(places: list[tuple[Slot, Parts]], sketched: bool) -> GradientBytes:
    """The bytes for weights with their parts; `sketched`: the norm of what is dropped is estimated."""
    ordinary = held = due = passing = 0
    for slot, parts in places:
        size = slot.param.numel() * slot.param.element_size()
        ordinary, passing = ordinary + size, max(passing, size)
        held += _bytes(slot, parts, size, sketched, due=False)
        due += _bytes(slot, parts, size, sketched, due=True)
    return GradientBytes(ordinary, held, due, passing)


def _bytes(slot: Slot, parts: Parts, size: int, sketched: bool, *, due: bool) -> int:
    where = slot.geometry
    way = way_of(parts, where is not None, due)
    if way is Way.WHOLE or where is None:
        return size
    if way is Way.AT_ONCE:
        return 0
    rows, cols = where.low_shape
    lines = (where.rows if where.side == Side.LEFT else where.cols) * COLUMNS if sketched else 0
    return (rows * cols + lines) * slot.work.itemsize

"""What is held of one weight's gradients between backward passes and a step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from lowrank_core.memory.geometry import Geometry
from lowrank_core.memory.gradients import Gradient, GradientBytes, Way, gradient_bytes
from lowrank_core.optim.bucket import Bucket
from lowrank_core.optim.draft import Draft
from lowrank_core.optim.layerwise.compressed import Compression, squared_norm_of
from lowrank_core.optim.layerwise.norms import estimate, sketch, squared_norm
from lowrank_core.optim.parts import Parts
from lowrank_core.optim.seeds import mix_seed
from lowrank_core.optim.slots import Slot, State

_SKETCH = 0x5C  # sets the draws of sketches apart from all others of a weight


def way_of(parts: Parts, projected: bool, due: bool, at_once: bool = False, compressed: bool = False) -> Way:
    """How the gradient of a weight with these `parts` is taken.

    Args:
      due: a subspace is looked for before the step.
      at_once: every weight steps inside backward.
      compressed: gradients are to add up in sketches, where the method has them.
    """
    if at_once:
        return Way.AT_ONCE
    if not projected:
        return Way.WHOLE
    if compressed and parts.residual.takes_sketches:
        return Way.SKETCH
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

    def compress(self, step: int, measured: bool) -> None:
        """Lets go of the gradient for its sketch, after `step` finished steps; `measured`: its norm is to be known."""
        (grad,) = self.draft.grads
        compression = Compression.of(self.slot, cast(Geometry, self.slot.geometry), step)
        self.square = squared_norm(grad) if measured else None
        self.draft.low, self.draft.lifts = [compression.down(grad)], [compression.up]
        self.draft.free_()

    def add_(self, other: Held) -> None:
        """Adds the gradient of another backward pass."""
        self.draft.add_(other.draft)
        self.passes += other.passes
        if self.sketch is not None and other.sketch is not None:
            self.sketch += other.sketch

    def scale_(self, factor: float | Tensor) -> None:
        """Multiplies what is held."""
        self.draft.scale_(factor)
        if self.square is not None:
            factor = factor.to(self.square.device) if isinstance(factor, Tensor) else factor
            self.square = self.square * factor**2
            self.sketch = None if self.sketch is None else self.sketch * factor

    def squared_norm(self, state: State) -> tuple[Tensor, Tensor | None]:
        """0-d float64 |G|_F^2, and the variance where it is an estimate."""
        if not self.draft.freed or self.draft.low is None:
            return squared_norm(self.draft.grads[0]), None
        if self.passes == 1 and self.square is not None:
            return self.square, None
        if not self.draft.settled:
            return squared_norm_of(self.draft.low[0], cast(Geometry, self.slot.geometry))
        if self.sketch is None:
            raise RuntimeError("step: a gradient that was let go of must have been measured before, got none")
        subspace = self.bucket.parts.projector.held(self.slot, state)
        return estimate(self.draft.low[0], self.sketch, subspace, self.slot.where(state), self.seed)


def planned(
    places: Iterable[tuple[Slot, Parts]], sketched: bool, at_once: bool, compressed: bool = False
) -> GradientBytes:
    """The bytes for weights with their parts; `sketched`: the norm of what is dropped is estimated."""
    return gradient_bytes((_gradient(slot, parts, at_once, compressed) for slot, parts in places), sketched)


def _gradient(slot: Slot, parts: Parts, at_once: bool, compressed: bool) -> Gradient:
    size, where = slot.weight.numel() * slot.weight.element_size(), slot.geometry
    between, due = (way_of(parts, where is not None, due, at_once, compressed) for due in (False, True))
    stack = 1 if slot.expert is None else len(slot.param)
    return Gradient(size, slot.work.itemsize, where, between, due, stack=stack)

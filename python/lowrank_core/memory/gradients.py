"""Bytes of gradients: all of them in ordinary training, and what layer-wise updates hold. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from math import prod
from typing import NamedTuple

from lowrank_core.memory.geometry import Geometry, Side

SKETCH_COLUMNS = 16  # of a sketch, by which the norm of what a subspace drops is estimated


class Way(Enum):
    """How a gradient is taken out of backward."""

    SUBSPACE = "in its subspace"
    SKETCH = "as a random sketch"
    WHOLE = "whole"
    AT_ONCE = "stepped at once"


class Gradient(NamedTuple):
    """The gradient of one weight, or of several that are alike."""

    size: int  # bytes
    work: int  # bytes of an element of the working dtype
    where: Geometry | None  # of the largest rank; None if the weight is not projected
    way: Way  # where no subspace is looked for
    way_due: Way  # where one is
    number: int = 1
    stack: int = 1  # how many of them backward makes as one tensor


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


def gradient_bytes(gradients: Iterable[Gradient], sketched: bool = False) -> GradientBytes:
    """The bytes of all `gradients`; `sketched`: the norm of what is dropped is estimated."""
    ordinary = held = due = passing = 0
    for one in gradients:
        ordinary, passing = ordinary + one.number * one.size, max(passing, one.stack * one.size)
        held += one.number * _held(one, one.way, sketched)
        due += one.number * _held(one, one.way_due, sketched)
    return GradientBytes(ordinary, held, due, passing)


def _held(gradient: Gradient, way: Way, sketched: bool) -> int:
    """Bytes that are held of one gradient until step()."""
    where = gradient.where
    if way is Way.AT_ONCE:
        return 0
    if way is Way.WHOLE or where is None:
        return gradient.size
    lines = where.rows if where.side == Side.LEFT else where.cols
    estimated = sketched and way is Way.SUBSPACE  # a sketch of the gradient tells its norm itself
    return (prod(where.low_shape) + (lines * SKETCH_COLUMNS if estimated else 0)) * gradient.work

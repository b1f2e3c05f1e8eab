"""Rules without second moments: gradients whose rows or columns are normalized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lowrank_core.checks import is_count, is_number, require
from lowrank_core.memory.storage import Layout, lion_fields
from lowrank_core.optim.parts.lines import balanced, normalized_lines
from lowrank_core.optim.parts.rules import Direction, Moments, Turn


@dataclass(frozen=True)
class Stateless:
    """What rules share that keep nothing, and correct no bias."""

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return {}

    def turned(self, moments: Moments, turn: Turn, step: float | Tensor) -> Moments:
        return {name: turn.linear(moment) for name, moment in moments.items()}

    def unbias(self, step: float | Tensor) -> float | Tensor:
        return 1.0

    def kernel(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Lines(Stateless):
    """The gradient, each row (else each column) divided by its root mean square.

    Source: Glentis et al. 2025 (SCALE, arXiv:2506.16659), algorithm 1.
    """

    rows: bool = True

    def update(self, grad: Tensor, moments: Moments, step: float | Tensor) -> Direction:
        return Direction(normalized_lines(grad, self.rows))


@dataclass(frozen=True)
class MomentumLines(Lines):
    """The same of exp_avg <- momentum exp_avg + (1 - momentum) g in the gradient's place."""

    momentum: float = 0.9

    def __post_init__(self) -> None:
        met = is_number(self.momentum, 0.0) and self.momentum < 1
        require(met, type(self).__name__, "momentum", "be a number in [0, 1)", self.momentum)

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return lion_fields(shape)

    def update(self, grad: Tensor, moments: Moments, step: float | Tensor) -> Direction:
        return super().update(moments["exp_avg"].lerp_(grad.contiguous(), 1 - self.momentum), moments, step)


@dataclass(frozen=True)
class Sinkhorn(Stateless):
    """The gradient, rows and columns in turns divided by their root mean squares.

    Source: Scetbon et al. 2025 (SinkGD, arXiv:2502.06742), algorithm 3.
    """

    iterations: int = 5

    def __post_init__(self) -> None:
        require(is_count(self.iterations, 1), type(self).__name__, "iterations", "be an int >= 1", self.iterations)

    def update(self, grad: Tensor, moments: Moments, step: float | Tensor) -> Direction:
        return Direction(balanced(grad, self.iterations))

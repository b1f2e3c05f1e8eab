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
class OfLines:
    """What rules share that bring the lines of a signal to one length, and correct no bias; the signal is the gradient
    unless they say otherwise, and they keep nothing."""

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return {}

    def update(self, grad: Tensor, moments: Moments, step: float | Tensor) -> Direction:
        return Direction(self.normalized(self.signal(grad, moments)))

    def signal(self, grad: Tensor, moments: Moments) -> Tensor:
        """What is normalized; `moments` advance in place."""
        return grad

    def normalized(self, signal: Tensor) -> Tensor:
        """The same with its lines at one length, in storage of its own: what the kernel does to a weight's signal."""
        raise NotImplementedError(f"{type(self).__name__}: a rule of lines must say which")

    def turned(self, moments: Moments, turn: Turn, step: float | Tensor) -> Moments:
        return {name: turn.linear(moment) for name, moment in moments.items()}

    def unbias(self, step: float | Tensor) -> float | Tensor:
        return 1.0

    def kernel(self) -> dict[str, Any]:
        raise NotImplementedError(f"{type(self).__name__}: a rule of lines must say what the kernel needs")


@dataclass(frozen=True)
class Lines(OfLines):
    """The gradient, each row (else each column) divided by its root mean square.

    Source: Glentis et al. 2025 (SCALE, arXiv:2506.16659), algorithm 1.
    """

    rows: bool = True

    def normalized(self, signal: Tensor) -> Tensor:
        return normalized_lines(signal, self.rows)

    def kernel(self) -> dict[str, Any]:
        return {"lines": "rows" if self.rows else "columns", "iterations": 1}


@dataclass(frozen=True)
class MomentumLines(Lines):
    """The same of exp_avg <- momentum exp_avg + (1 - momentum) g in the gradient's place."""

    momentum: float = 0.9

    def __post_init__(self) -> None:
        met = is_number(self.momentum, 0.0) and self.momentum < 1
        require(met, type(self).__name__, "momentum", "be a number in [0, 1)", self.momentum)

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return lion_fields(shape)

    def signal(self, grad: Tensor, moments: Moments) -> Tensor:
        return moments["exp_avg"].lerp_(grad.contiguous(), 1 - self.momentum)


@dataclass(frozen=True)
class Sinkhorn(OfLines):
    """The gradient, rows and columns in turns divided by their root mean squares.

    Source: Scetbon et al. 2025 (SinkGD, arXiv:2502.06742), algorithm 3.
    """

    iterations: int = 5

    def __post_init__(self) -> None:
        require(is_count(self.iterations, 1), type(self).__name__, "iterations", "be an int >= 1", self.iterations)

    def normalized(self, signal: Tensor) -> Tensor:
        return balanced(signal, self.iterations)

    def kernel(self) -> dict[str, Any]:
        return {"lines": "both", "iterations": self.iterations}

"""Update rules: what is done with a gradient, whole or projected."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from lowrank_core.checks import is_number, require
from lowrank_core.memory.geometry import Geometry
from lowrank_core.memory.storage import Layout

Moments = dict[str, Tensor]


class Turn(Protocol):
    """A change of subspace, T = P_new^T P_old, as it acts on tensors that live in the subspace."""

    def linear(self, low: Tensor) -> Tensor:
        """X -> T X, X T^T or both, by side."""
        ...

    def squared(self, low: Tensor) -> Tensor:
        """The same with T squared elementwise: how variances travel."""
        ...

    def overlap(self) -> Tensor:
        """0-d, in [0, 1]: the mean squared cosine between the subspaces."""
        ...

    def cosine(self) -> Tensor:
        """0-d, in [0, 1]: the mean cosine of the principal angles between the subspaces."""
        ...


class Direction(NamedTuple):
    """numerator / (denominator * correction), which is subtracted from a weight once per unit of lr.

    It is kept as a fraction so that the plain path rounds exactly as torch's own AdamW does.
    """

    numerator: Tensor
    denominator: Tensor | None = None  # None: the numerator is the direction, and there is no correction
    correction: float | Tensor = 1.0  # a 0-d tensor if the step count is one
    unbias: float | Tensor = 1.0  # the factor of all bias corrections; without it the direction is uncorrected

    def dense(self, scale: float = 1.0) -> Tensor:
        """`scale` times the value, in storage of its own."""
        if self.denominator is None:
            return self.numerator * scale
        value, factor = self.numerator / self.denominator, scale / self.correction
        return value if not isinstance(factor, Tensor) and factor == 1 else value.mul_(factor)

    def reshaped(self, shape: torch.Size) -> Direction:
        """The same, in `shape`."""
        denominator = None if self.denominator is None else self.denominator.reshape(shape)
        return self._replace(numerator=self.numerator.reshape(shape), denominator=denominator)

    def subtract_from_(self, target: Tensor, lr: float | Tensor) -> None:
        """target <- target - lr * self."""
        if isinstance(lr, Tensor):
            target.sub_(self.dense() * lr.to(target.dtype))
        elif self.denominator is None:
            target.sub_(self.numerator, alpha=lr)
        elif isinstance(self.correction, Tensor):  # as `value` it would be read, which waits for the device
            target.addcdiv_(self.numerator, self.denominator * self.correction, value=-lr)
        else:
            target.addcdiv_(self.numerator, self.denominator, value=-(lr / self.correction))


class Rule(Protocol):
    """Turns a gradient into a direction; knows no lr, no decay and no parameter."""

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """What it keeps for a gradient of `shape`; a codec stores the fields of dtype `WORK`."""
        ...

    def update(self, grad: Tensor, moments: Moments, step: float | Tensor) -> Direction:
        """Advances `moments` in place by `grad` and returns the direction of step number `step` (from 1)."""
        ...

    def turned(self, moments: Moments, turn: Turn, step: float | Tensor) -> Moments:
        """`moments` after `step` >= 1 finished steps, expressed in a new basis."""
        ...

    def unbias(self, step: float | Tensor) -> float | Tensor:
        """The factor of all bias corrections in step number `step`."""
        ...

    def kernel(self) -> dict[str, Any]:
        """Its arguments of `subspace_step_`, where a kernel has it."""
        ...


class Sided(Rule, Protocol):
    """A rule that keeps something for each direction of a subspace, and so has to know on which side this is."""

    def layout_in(self, where: Geometry) -> Layout:
        """What it keeps for a gradient in a subspace at `where`."""
        ...


def layout_of(rule: Rule, where: Geometry) -> Layout:
    """What `rule` keeps for a gradient in a subspace at `where`."""
    return cast(Sided, rule).layout_in(where) if hasattr(rule, "layout_in") else rule.layout(where.low_shape)


def check_keys(op: str, betas: Any, eps: Any) -> None:
    """Raises ValueError unless `betas` are two numbers in [0, 1) and `eps` is one >= 0."""
    pair = isinstance(betas, (tuple, list)) and len(betas) == 2
    require(pair and all(is_number(b, 0.0) and b < 1 for b in betas), op, "betas", "be two numbers in [0, 1)", betas)
    require(is_number(eps, 0.0), op, "eps", "be a number >= 0", eps)

"""Adafactor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowrank_core.checks import is_number, require
from lowrank_core.memory.storage import Layout, adafactor_fields
from lowrank_core.optim.parts.products import total
from lowrank_core.optim.parts.rules import Direction, Moments, Turn

DECAY = -0.8  # exponent of the published decay 1 - t^-0.8
THRESHOLD = 1.0  # the root mean square that a direction is clipped to


@dataclass(frozen=True)
class Adafactor:
    """The gradient over the root of a second moment that only its means over rows and columns are kept of.

    With b = min(1 - t^-0.8, beta2), row <- b row + (1 - b) mean_j(g^2 + eps^2), col the same over i:
    u = g / sqrt(row col^T / mean(row));  direction = u / max(1, rms(u))

    No first moment, and no correction for bias: b is 0 in step 1. Gradients are matrices.

    Source: Shazeer, Stern 2018 (Adafactor, arXiv:1804.04235), algorithm 4 with the decay of section 7.2, as GaLore's
      variant has it. Deviations: `beta2` bounds the decay, and eps is in units of the gradient (there eps^2 = 1e-30).
    """

    beta2: float = 0.999
    eps: float = 1e-15

    def __post_init__(self) -> None:
        require(is_number(self.beta2, 0.0) and self.beta2 < 1, "Adafactor", "betas", "be in [0, 1)", self.beta2)
        require(is_number(self.eps, 0.0), "Adafactor", "eps", "be a number >= 0", self.eps)

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return adafactor_fields(shape)

    def update(self, grad: Tensor, moments: Moments, step: float | Tensor) -> Direction:
        self.advance(grad, moments, step)
        return Direction(clipped(self.normalized(grad, moments)))

    def advance(self, grad: Tensor, moments: Moments, step: float | Tensor) -> None:
        """The means of the second moment after step number `step`, in place."""
        square, decay = grad.contiguous().square(), self.decay(step)  # whose sums would follow another layout
        for kept, dim in ((moments["exp_avg_sq_row"], 1), (moments["exp_avg_sq_col"], 0)):
            mean = (_mean(square, dim).double() + self.eps**2) * (1 - decay)
            kept.copy_((kept.to(square.dtype) * decay + mean).clamp(max=torch.finfo(kept.dtype).max))

    def normalized(self, grad: Tensor, moments: Moments) -> Tensor:
        """u: `grad` over the root of the second moment."""
        row, col = moments["exp_avg_sq_row"], moments["exp_avg_sq_col"]
        least = torch.finfo(row.dtype).tiny ** 0.5
        means = _shares(row.to(grad.dtype)), col.to(grad.dtype)
        # Where a root is 0, so is the gradient.
        over_row, over_col = (1 / mean.sqrt().clamp(min=least) for mean in means)
        return (grad * over_row[:, None]).mul_(over_col)

    def decay(self, step: float | Tensor) -> Any:
        """Of the second moment in step number `step`."""
        published = 1 - step**DECAY
        return published.clamp(max=self.beta2) if isinstance(published, Tensor) else min(published, self.beta2)

    def turned(self, moments: Moments, turn: Turn, step: float | Tensor) -> Moments:
        """The means of (T o T) V, with V = row col^T / mean(row); never negative."""
        squared = turn.squared(outer(moments["exp_avg_sq_row"], moments["exp_avg_sq_col"]))
        return {"exp_avg_sq_row": squared.mean(dim=1), "exp_avg_sq_col": squared.mean(dim=0)}

    def unbias(self, step: float | Tensor) -> float | Tensor:
        return 1.0

    def kernel(self) -> dict[str, Any]:
        raise NotImplementedError("Adafactor: its directions are made by a kernel of their own, `factored_list`")


def clipped(direction: Tensor) -> Tensor:
    """`direction`, in place, divided so that its root mean square is at most `THRESHOLD`."""
    lines = torch.linalg.vector_norm(direction, dim=1 if len(direction) > 1 else 0)
    size = (total(lines.double().square()) / direction.numel()).sqrt()
    return direction.div_((size / THRESHOLD).clamp(min=1.0).to(direction.dtype))


def outer(row: Tensor, col: Tensor) -> Tensor:
    """row col^T / mean(row): the second moment that has these means."""
    return torch.outer(_shares(row), col)


def _shares(row: Tensor) -> Tensor:
    """row / mean(row); zeros where all is zero."""
    mean = (total(row) / len(row)).clamp(min=torch.finfo(row.dtype).tiny)
    return (row / mean).to(row.dtype)


def _mean(matrix: Tensor, dim: int) -> Tensor:
    alone = matrix.shape[1 - dim] == 1  # torch splits a single sum by the number of threads
    return total(matrix.flatten())[None] / matrix.numel() if alone else matrix.mean(dim=dim)

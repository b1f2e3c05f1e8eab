"""Filters to step, and the errors that a step may make."""

from __future__ import annotations

from typing import NamedTuple

import torch
from testing import cases, tolerance
from torch import Tensor

CHUNK = 256  # parameters that are worked on at a time
TASK = 1 << 14  # parameters of a task


class Filter(NamedTuple):
    """Arguments of `kalman_diag_step`, in float64."""

    theta: Tensor
    p: Tensor
    jac: Tensor
    score: Tensor

    def to(self, dtype: torch.dtype) -> Filter:
        """In another dtype, but for p, which has no half precision."""
        return Filter(*(a.to(tolerance.factor_dtype(dtype) if a is self.p else dtype) for a in self))


SHAPES = (  # m, n
    *((0, 5), (5, 0), (0, 0), (1, 1), (1, 2), (2, 1)),
    *((3, cases.VECTOR + d) for d in (-1, 0, 1)),
    *((4 + d, 2 * cases.VECTOR + d) for d in (-1, 0, 1)),
    *((7, CHUNK + d) for d in (-1, 0, 1)),
    *((31 + d, cases.PRIME) for d in (-1, 0, 1)),  # the Gram tiles of up to 31 outputs stay in registers' reach
    (10, TASK + 1),
    (20, 4),
    (64, 20),
)


def make(m: int, n: int, *, seed: int = 0, p: float = 0.1, scale: float = 1.0) -> Filter:
    theta, spread, score = cases.gaussian(3, n, seed=seed)
    return Filter(theta, p * torch.exp(0.5 * spread), scale * cases.gaussian(m, n, seed=seed + 1), score)


def condition(f: Filter) -> float:
    """Of S = I + M diag(p) Mᵀ, whose smallest eigenvalue is at least 1."""
    if f.jac.numel() == 0:
        return 1.0
    values = torch.linalg.eigvalsh((f.jac * f.p) @ f.jac.mT)
    return 1.0 + float(values[-1].clamp(min=0.0))


def bounds(f: Filter, dtype: torch.dtype, lr: float = 1.0) -> tuple[Tensor, Tensor]:
    """Elementwise, of theta and p: sums and factorizations in float64, one rounding to what is stored.

    A solve with S is off by m gamma κ(S), relative to the norm of its result (Higham 2002, theorem 10.4); A and t are
    sums of n products. The leverage is a squared norm of such a solve.
    """
    m, n = f.jac.shape
    solve = (m + 1) * tolerance.gamma(n + m + 2, torch.float64) * condition(f)
    t = (f.jac.abs() * f.p) @ f.score.abs()
    explained = f.jac.norm(dim=0) * t.norm()
    theta = lr * f.p * solve * (f.score.abs() + explained)
    p = f.p * solve
    unit, kept = tolerance.UNIT[dtype], tolerance.UNIT[tolerance.factor_dtype(dtype)]
    moved = lr * f.p * (f.score.abs() + explained)
    return theta + unit * (f.theta.abs() + moved), p + kept * f.p

"""Error bounds of the family `subspace_step`, carried along the formulas of its reference.

Every intermediate result comes with a bound of its error: a product has that of `tolerance`, each elementary operation
adds one unit of its result, and what goes in passes on through the derivative or, where that is large (a root, a
quotient), through the ends of its interval. A sign is discontinuous: an entry that lies within its own error of the
place where the sign changes may come out either way, so its error is the whole jump of 2. Such entries are few, and the
tests see to it that the bound as a whole stays below what a step does.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from lowrank_core.reference import subspace_step as reference
from torch import Tensor

from testing import tolerance

Z = 5.0  # standard deviations that a mean of draws may be off: one in 1.7 million, for a thousand means one in 1700
JUMP = 2.0  # from one sign to the other
PAGE = 4096


class Bounds(NamedTuple):
    """What `reference.Stepped` holds, as errors."""

    param: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor | None
    limit: float


class Ranged(NamedTuple):
    """A float64 value and the bound of its error."""

    value: Tensor
    error: Tensor

    @property
    def most(self) -> Tensor:
        return self.value.abs() + self.error


class Precision(NamedTuple):
    """How a step computes: in `work`, with matrices rounded by `operand` before they are multiplied."""

    work: torch.dtype
    operand: float

    @property
    def unit(self) -> float:
        return tolerance.UNIT[self.work]

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        """Bound of left @ right, from magnitudes."""
        relative = tolerance.gamma(left.shape[-1] + 2, self.work) + 2 * self.operand + self.operand**2
        return relative * (left @ right)


def projected(p: Tensor, g: Tensor, precision: Precision) -> Ranged:
    r = p.mT @ g
    return Ranged(r, precision.product(p.mT.abs(), g.abs()) + precision.unit * r.abs())


def advanced(
    r: Ranged, m: Tensor, v: Tensor | None, unit: float, *, rule: str, betas: tuple[float, float], eps: float, step: int
) -> tuple[Ranged, Tensor, Tensor | None]:
    """Direction N; errors of the moments. The counts of roundings are those of the kernel's scalar statements."""
    beta1, beta2 = betas
    n, m1, v1 = reference.advance(r.value, m, v, rule=rule, betas=betas, eps=eps, step=step)
    read, kept = r.value.abs(), m.abs()
    if rule == "lion":
        mixed = beta1 * m + (1 - beta1) * r.value
        near = (1 - beta1) * r.error + 3 * unit * (beta1 * kept + (1 - beta1) * read)
        jump = torch.where((mixed.abs() <= near) & (near > 0), JUMP, 0.0).double()
        return Ranged(n, jump), (1 - beta2) * r.error + 3 * unit * (beta2 * kept + (1 - beta2) * read), None
    if rule == "momentum":
        error = r.error + 3 * unit * (beta1 * kept + read)
        return Ranged(n, error), error, None
    assert v1 is not None
    dm = (1 - beta1) * r.error + 4 * unit * (1 - beta1) * (read + kept) + unit * m1.abs()
    squared, off = (r.value - m1, r.error + dm) if rule == "adabelief" else (r.value, r.error)
    off = off + unit * squared.abs() if rule == "adabelief" else off
    dv = (1 - beta2) * (2 * squared.abs() * off + off**2) + 6 * unit * v1
    first, root = 1 / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step)
    below = v1.sqrt() * root + eps
    dbelow = root * ((v1 + dv).sqrt() - (v1 - dv).clamp(min=0).sqrt()) + 4 * unit * below
    dn = (first * dm + n.abs() * dbelow) / (below - dbelow).clamp(min=0) + 4 * unit * n.abs()
    return Ranged(n, dn.nan_to_num(nan=JUMP, posinf=math.inf)), dm, dv


def channel_scale(n: Ranged, r: Ranged, residual: str, cap: float) -> Ranged:
    """phi, from the ends of both norms; the squares are summed in float64. A median moves no more than all it is of."""
    dims = (0, 1) if residual == "tensor" else 0
    above, dabove = n.value.norm(dim=dims), n.error.norm(dim=dims)
    below, dbelow = r.value.norm(dim=dims), r.error.norm(dim=dims)
    phi = above / (below + 1e-8)
    highest = (above + dabove) / ((below - dbelow).clamp(min=0) + 1e-8)
    lowest = (above - dabove).clamp(min=0) / (below + dbelow + 1e-8)
    summed = 2 * tolerance.gamma(n.value.numel(), torch.float64) * phi
    error = torch.maximum(highest - phi, phi - lowest) + summed
    value = reference.channel_scale(n.value, r.value, residual, cap)
    if math.isfinite(cap) and bool((phi > 0).any()):
        most, off = cap * phi[phi > 0].median(), cap * error.max()
        ends = torch.minimum(phi + error, most + off) - value, value - torch.minimum(phi - error, most - off)
        error = torch.maximum(*ends)
    return Ranged(value, error)


def squared_rest(p: Tensor, g: Tensor, r: Ranged, kappa: float, precision: Precision) -> Ranged:
    """Squared norms of the columns of G - kappa P R from those of G, R and P R, the last one by PᵀP and R Rᵀ, whose
    columns have factors."""
    value = (g - kappa * (p @ r.value)).square().sum(dim=0)
    gram, size = p.mT.abs() @ p.abs(), r.value.abs()
    rounded = tolerance.gamma(len(p) + 2, precision.work) + tolerance.gamma(r.value.shape[1] + 4, precision.work)
    image = gram @ size
    dpr = ((rounded + 2 * precision.unit) * size * image).sum(dim=0) + (2 * r.error * (gram @ r.most)).sum(dim=0)
    dr = (2 * size * r.error + r.error**2).sum(dim=0)
    summed = tolerance.gamma(len(g), torch.float64) * (g.square().sum(dim=0) + kappa**2 * (size * image).sum(dim=0))
    return Ranged(value, 2 * abs(kappa) * dr + kappa**2 * dpr + summed)


def limited(phi: Ranged, squares: Ranged, previous: float | None, growth: float, elements: int) -> tuple[Ranged, float]:
    """The limiter's factor, and the error of the norm that it keeps."""
    one = torch.ones((), dtype=torch.float64)
    if previous is None:
        return Ranged(one, 0 * one), 0.0
    squared = float((phi.value.square() * squares.value).sum())
    highest = math.sqrt(float((phi.most.square() * squares.most).sum()))
    least = squares.value - squares.error  # where it is below 0, it takes off what other columns have
    lower = torch.where(least > 0, (phi.value - phi.error).clamp(min=0), phi.most).square() * least
    norm, lowest = math.sqrt(squared), math.sqrt(max(0.0, float(lower.sum())))
    allowed = growth * previous if previous > 1e-12 * math.sqrt(elements) else math.inf
    ends = [min(1.0, allowed / x) if x > 0 else 1.0 for x in (highest, norm, lowest)]
    factor = Ranged(one * ends[1], one * (ends[2] - ends[0]))
    kept = min(highest, allowed) - min(lowest, allowed) + tolerance.UNIT[torch.float32] * min(highest, allowed)
    return factor, kept


def times(a: Ranged, b: Ranged) -> Ranged:
    value = a.value * b.value
    return Ranged(value, a.most * b.most - value.abs())


def step(
    param: Tensor, grad: Tensor, basis: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor | None, *, side: str, **options: Any
) -> Bounds:
    """Bounds of what `reference.subspace_step` finds from the same arguments and `precision`."""
    work = tolerance.factor_dtype(param.dtype)
    operand = tolerance.UNIT[torch.bfloat16] if options.pop("precision", "highest") == "medium" else 0.0
    turned = [x.double().mT if side == "right" else x.double() for x in (param, grad, exp_avg)]
    v = None if exp_avg_sq is None else exp_avg_sq.double().mT if side == "right" else exp_avg_sq.double()
    precision = Precision(work, operand if work == torch.float32 else 0.0)
    found = _left(turned[0], turned[1], basis.double(), turned[2], v, precision, **options)
    out, m, v, limit = found
    # The reference rounds as often as a float64 kernel: both are that far from what is exact.
    twice = 2.0 if work == torch.float64 else 1.0
    unit, least = tolerance.UNIT[param.dtype], torch.finfo(param.dtype).smallest_normal * torch.finfo(param.dtype).eps
    stored = out.error + unit * out.most + least
    errors = [twice * x for x in (stored, m, v) if x is not None]
    if side == "right":
        errors = [x.mT for x in errors]
    return Bounds(errors[0], errors[1], errors[2] if len(errors) > 2 else None, twice * limit)


def _left(
    w: Tensor, g: Tensor, p: Tensor, m: Tensor, v: Tensor | None, precision: Precision, *, step: int, lr: float,
    rule: str = "adam", betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0,
    scale: float = 1.0, residual: str = "drop", residual_scale: float = 1.0, cap: float = math.inf,
    limit: float | None = None, growth: float = 1.01, maximize: bool = False,
) -> tuple[Ranged, Tensor, Tensor | None, float]:  # fmt: skip
    unit, g = precision.unit, -g if maximize else g
    r = projected(p, g, precision)
    n, dm, dv = advanced(r, m, v, unit, rule=rule, betas=betas, eps=eps, step=step)
    wide, kept = p.abs(), 0.0
    lifted, rest = abs(scale) * n.most, Ranged(torch.zeros_like(g), torch.zeros_like(g))
    error = abs(scale) * (wide @ n.error)
    if residual in ("scaled", "channel", "tensor"):
        kappa, factor = (residual_scale, 1.0) if residual == "scaled" else (0.0, abs(scale))
        phi = Ranged(*(factor * x for x in channel_scale(n, r, residual, cap)))
        squares = squared_rest(p, g, r, kappa, precision)
        allowed, kept = limited(phi, squares, limit, growth, g.numel())
        gains = times(phi, allowed)
        rest = Ranged(gains.value * g, gains.error * (g - kappa * (p @ r.value)).abs())
        error = (error if residual == "scaled" else 0.0) + gains.most * abs(kappa) * (wide @ r.error)
        lifted = lifted + gains.most * abs(kappa) * r.most if residual == "scaled" else 0 * lifted
    elif residual == "sign":
        rest = Ranged(torch.full_like(g, residual_scale), abs(residual_scale) * _jumps(p, g, r, precision))
    error = error + precision.product(wide, lifted) + rest.error
    through = wide @ lifted
    # keep w, the product and S: each a factor rounded once, a product, and the sums; `lifted` has three more. Their
    # magnitudes are at least that of what is stored.
    gathered = abs(1 - lr * weight_decay) * w.abs() + lr * (2 * through + rest.most)
    return Ranged(gathered, lr * error + 4 * unit * gathered), dm, dv, kept


def _jumps(p: Tensor, g: Tensor, r: Ranged, precision: Precision) -> Tensor:
    """Where G - P R lies within its error of the threshold of its sign."""
    threshold = 8 * precision.unit * math.sqrt(p.shape[1]) * float(g.abs().max()) if g.numel() else 0.0
    rest, product = g - p @ r.value, p.abs() @ r.most
    near = p.abs() @ r.error + precision.product(p.abs(), r.most) + precision.unit * (g.abs() + product + 4 * threshold)
    return torch.where(((rest.abs() - threshold).abs() <= near) & (near > 0), JUMP, 0.0).double()


def mean_of_draws(variance: Tensor, count: int) -> Tensor:
    """How far the mean of `count` independent draws may be from its expectation."""
    return Z * (variance / count).sqrt()


def workspaces(threads: int) -> int:
    """Bytes that the products keep for each thread (cpp/src/core/levels/nest.cpp): panels of A and B and tiles of one
    task, 32 row panels by 16 column panels of the widest level, 14 rows padded to 16, 32 columns, 256 deep."""
    rows, columns, depth, item = 32, 16, 256, 4
    a, b, tiles = rows * 16 * depth, columns * 32 * depth, rows * columns * 14 * 32
    return threads * ((a + b + tiles) * item + 3 * PAGE)

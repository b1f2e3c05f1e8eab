"""Family `subspace_step` in float64: the oracle of its tests and benches.

One weight at a time, out of place; nothing is checked and nothing is rounded.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Stepped(NamedTuple):
    """What a step makes of one weight, its moments and the norm that its limiter remembers."""

    param: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor | None
    limit: float | None


def subspace_step(
    param: Tensor,
    grad: Tensor,
    basis: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor | None = None,
    *,
    side: str,
    step: int,
    lr: float,
    rule: str = "adam",
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    scale: float = 1.0,
    residual: str = "drop",
    residual_scale: float = 1.0,
    cap: float = math.inf,
    limit: float | None = None,
    growth: float = 1.01,
    maximize: bool = False,
    unit: float = 2.0**-24,
) -> Stepped:
    """W <- (1 - lr weight_decay) W - lr (scale P N + S); `unit`: round-off of the dtype that a sign is judged in."""
    w, g, p = (x.double() for x in (param, grad, basis))
    g = -g if maximize else g
    if side == "right":
        second = None if exp_avg_sq is None else exp_avg_sq.double().mT
        w, m, v, limit = _left(
            w.mT, g.mT, p, exp_avg.double().mT, second, lr, weight_decay, residual_scale, cap, limit, growth, unit,
            rule=rule, betas=betas, eps=eps, step=step, scale=scale, residual=residual,
        )  # fmt: skip
        return Stepped(w.mT, m.mT, None if v is None else v.mT, limit)
    second = None if exp_avg_sq is None else exp_avg_sq.double()
    return Stepped(
        *_left(
            w, g, p, exp_avg.double(), second, lr, weight_decay, residual_scale, cap, limit, growth, unit,
            rule=rule, betas=betas, eps=eps, step=step, scale=scale, residual=residual,
        )
    )  # fmt: skip


def _left(
    w: Tensor,
    g: Tensor,
    p: Tensor,
    m: Tensor,
    v: Tensor | None,
    lr: float,
    weight_decay: float,
    residual_scale: float,
    cap: float,
    limit: float | None,
    growth: float,
    unit: float,
    *,
    rule: str,
    betas: tuple[float, float],
    eps: float,
    step: int,
    scale: float,
    residual: str,
) -> tuple[Tensor, Tensor, Tensor | None, float | None]:
    r = p.mT @ g
    n, m, v = advance(r, m, v, rule=rule, betas=betas, eps=eps, step=step)
    update = scale * (p @ n)
    phi = channel_scale(n, r, residual, cap)
    if residual == "scaled":
        rest, limit = _limited(phi * (g - residual_scale * (p @ r)), limit, growth)
        update = update + rest
    elif residual in ("channel", "tensor"):
        update, limit = _limited(scale * phi * g, limit, growth)
    elif residual == "sign":
        rest = g - p @ r
        largest = float(g.abs().max()) if g.numel() else 0.0
        threshold = 8 * unit * math.sqrt(r.shape[0]) * largest
        update = update + residual_scale * torch.where(rest.abs() > threshold, rest.sign(), 0.0)
    return (1 - lr * weight_decay) * w - lr * update, m, v, limit


def channel_scale(n: Tensor, r: Tensor, residual: str, cap: float = math.inf) -> Tensor:
    """phi of each channel, [n]."""
    if residual == "tensor":
        whole: Tensor = n.norm() / (r.norm() + 1e-8)
        return whole.expand(n.shape[1])
    phi: Tensor = n.norm(dim=0) / (r.norm(dim=0) + 1e-8)
    live = phi[phi > 0]
    return phi.clamp(max=cap * float(live.median())) if math.isfinite(cap) and len(live) else phi


def advance(
    r: Tensor, m: Tensor, v: Tensor | None, *, rule: str, betas: tuple[float, float], eps: float, step: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Direction and moments of a rule."""
    beta1, beta2 = betas
    if rule == "lion":
        return (beta1 * m + (1 - beta1) * r).sign(), beta2 * m + (1 - beta2) * r, None
    if rule == "momentum":
        return beta1 * m + r, beta1 * m + r, None
    assert v is not None
    m = beta1 * m + (1 - beta1) * r
    v = beta2 * v + ((1 - beta2) * (r - m).square() + eps if rule == "adabelief" else (1 - beta2) * r.square())
    return m / (1 - beta1**step) / ((v / (1 - beta2**step)).sqrt() + eps), m, v


def _limited(rest: Tensor, previous: float | None, growth: float) -> tuple[Tensor, float | None]:
    """`rest` at most `growth` times as long as the previous one, and its norm; a norm of rounding size is none."""
    if previous is None:
        return rest, None
    norm = float(rest.norm())
    if previous > 1e-12 * math.sqrt(rest.numel()) and norm > growth * previous:
        return rest * (growth * previous / norm), growth * previous
    return rest, norm


class Sketched(NamedTuple):
    """What a step of Adafactor with a sketched momentum makes of one weight and its state, and the direction."""

    param: Tensor
    exp_avg: Tensor
    row_means: Tensor
    col_means: Tensor
    direction: Tensor


def sketched_step(
    param: Tensor,
    grad: Tensor,
    basis: Tensor,
    exp_avg: Tensor,
    row_means: Tensor,
    col_means: Tensor,
    *,
    right: bool,
    decay: float,
    beta1: float,
    eps: float,
    threshold: float,
    lr: float,
    weight_decay: float,
    maximize: bool = False,
) -> Sketched:
    """y = (1 - b1) x + b1 P C, clipped, with x the gradient that Adafactor has normalized."""
    w, g, p, c, row, col = (x.double() for x in (param, grad, basis, exp_avg, row_means, col_means))
    g = -g if maximize else g
    row = decay * row + (1 - decay) * (g.square() + eps**2).mean(1)
    col = decay * col + (1 - decay) * (g.square() + eps**2).mean(0)
    x = g / (torch.outer(row, col) / row.mean()).sqrt()
    low, lifted = (x @ p, c @ p.mT) if right else (p.mT @ x, p @ c)
    y = (1 - beta1) * x + beta1 * lifted
    y = y / max(1.0, float(y.square().mean().sqrt()) / threshold)
    return Sketched((1 - lr * weight_decay) * w - lr * y, beta1 * c + (1 - beta1) * low, row, col, y)

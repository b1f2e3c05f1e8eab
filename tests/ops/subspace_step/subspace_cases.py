"""Weights to be stepped, and the call that steps them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from dataclasses import replace as replaced
from typing import Any, NamedTuple

import lowrank_core
import pytest
import torch
from lowrank_core.reference import subspace_step as reference
from testing import cases, checks, step_bounds, tolerance
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SIDES = ("left", "right")
RULES = ("adam", "adabelief", "lion", "momentum")
SECOND = ("adam", "adabelief")
RESIDUALS = ("drop", "scaled", "sign", "channel", "tensor")
LIMITED = ("scaled", "channel", "tensor")

every_side = pytest.mark.parametrize("side", SIDES)
every_rule = pytest.mark.parametrize("rule", RULES)
every_residual = pytest.mark.parametrize("residual", RESIDUALS)


class Shape(NamedTuple):
    """Of a gradient [met, other], turned so that its basis [met, rank] is on the left."""

    met: int
    other: int
    rank: int


EMPTY = tuple(Shape(*s) for s in ((0, 0, 0), (0, 5, 0), (5, 0, 2)))
SHAPES = (
    Shape(5, 4, 0),
    Shape(1, 1, 1),
    *(Shape(cases.VECTOR + d, 2 * cases.VECTOR - d, 5) for d in (-1, 0, 1)),
    *(Shape(cases.TILE_ROWS + d, cases.TILE_COLS + d, cases.TILE_ROWS + d) for d in (-1, 0, 1)),
    *(Shape(cases.TILE_COLS + d, cases.TILE_ROWS + d, 6) for d in (-1, 0, 1)),
    Shape(cases.PRIME, cases.BLOCK + 1, 1),
    Shape(cases.DEPTH + 1, cases.PRIME, 20),
)
LARGE = Shape(401, 523, 40)

# Steps that move a weight by as much as it is large: no error of a step hides behind the rounding of the weight.
STRONG: dict[str, Any] = {"lr": 0.25, "weight_decay": 0.2, "scale": 0.75, "residual_scale": 0.6, "eps": 1e-6}


@dataclass
class Weight:
    """A weight, its gradient and basis, and the state of its step."""

    param: Any
    grad: Any
    basis: Any
    exp_avg: Any
    exp_avg_sq: Any = None
    side: str = "left"
    step: int = 3
    seed: int = 0
    limit: Any = None

    def map(self, function: Callable[[Any], Any]) -> Weight:
        """The same with a function applied to every array."""

        def of(x: Any) -> Any:
            return tuple(map(of, x)) if isinstance(x, tuple) else function(x)

        names = [f.name for f in fields(self) if f.name not in ("side", "step", "seed")]
        return replaced(self, **{name: None if (x := getattr(self, name)) is None else of(x) for name in names})

    def clone(self) -> Weight:
        return self.map(lambda x: x.clone() if isinstance(x, Tensor) else x.copy())

    def numpy(self) -> Weight:
        return self.map(lambda x: x.detach().numpy())

    def state(self) -> tuple[Any, ...]:
        """Everything that a step may change."""
        held = (self.param, self.exp_avg, self.exp_avg_sq, self.limit)
        return tuple(x for x in held if x is not None)


def dense(x: Tensor) -> Tensor:
    """A row-major copy, whose strides are those of its shape even where a dimension is 1."""
    return x.clone(memory_format=torch.contiguous_format)


def weight(
    shape: Shape,
    *,
    side: str = "left",
    dtype: torch.dtype = torch.float32,
    rule: str = "adam",
    step: int = 3,
    limit: float | None = None,
    orthonormal: bool = False,
    seed: int = 0,
) -> Weight:
    """A weight in mid-training; the second moment is not small, so that the direction is well conditioned."""
    met, other, rank = shape
    work = tolerance.factor_dtype(dtype)
    param, grad = cases.gaussian(met, other, seed=seed + 1), cases.gaussian(met, other, seed=seed + 2)
    first, second = cases.gaussian(rank, other, seed=seed + 3), cases.gaussian(rank, other, seed=seed + 4)
    draw = cases.orthonormal if orthonormal else lambda m, r, s: cases.gaussian(m, r, seed=s) / max(m, 1) ** 0.5
    turned = [param, grad, 0.3 * first, 0.1 + second.square()]
    turned = [dense(x.mT if side == "right" else x) for x in turned]
    norm = None if limit is None else torch.full((1,), limit, dtype=torch.float32)
    return Weight(
        turned[0].to(dtype), turned[1].to(dtype), dense(draw(met, rank, seed + 5)).to(work), turned[2].to(work),
        turned[3].to(work) if rule in SECOND else None, side, step, seed, norm,
    )  # fmt: skip


def lists(weights: Iterable[Weight]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of the call."""
    held = list(weights)
    second = [w.exp_avg_sq for w in held if w.exp_avg_sq is not None]
    limits = [w.limit for w in held if w.limit is not None]
    places = tuple([getattr(w, name) for w in held] for name in ("param", "grad", "basis", "exp_avg"))
    keys = {"sides": [w.side for w in held], "steps": [w.step for w in held], "seeds": [w.seed for w in held]}
    return (*places, second or None), {**keys, "limits": limits or None}


def take(*weights: Weight, **options: Any) -> bool:
    """Steps the weights in place; their gradients and bases stay as they are, to the bit."""
    before = _read(weights)
    arguments, keys = lists(weights)
    taken = lowrank_core.subspace_step_(*arguments, **{"precision": "highest", **keys, **options})
    assert checks.same_bits(_read(weights), before)
    return taken


def _read(weights: Iterable[Weight]) -> list[tuple[Any, Any]]:
    """Copies of what a step only reads."""
    return [(w.grad, w.basis) for w in (w.clone() for w in weights)]


def stepped(w: Weight, **options: Any) -> Weight:
    """A copy after its step."""
    after = w.clone()
    assert take(after, **options)
    return after


def check(before: Weight, after: Weight, **options: Any) -> None:
    """`after` is what the reference makes of `before`, within the bound, and the bound is below what a step does."""
    shared = {"side": before.side, "step": before.step, "limit": None if before.limit is None else float(before.limit)}
    tensors = (before.param, before.grad, before.basis, before.exp_avg, before.exp_avg_sq)
    unit = tolerance.UNIT[tolerance.factor_dtype(before.param.dtype)]
    numbers = {key: x for key, x in options.items() if key != "precision"}
    exact = reference.subspace_step(*tensors, **shared, **numbers, unit=unit)
    bound = step_bounds.step(*tensors, **shared, **options)
    for ours, theirs, error in zip((after.param, after.exp_avg, after.exp_avg_sq), exact[:3], bound[:3], strict=True):
        if ours is not None:
            assert bool(((ours.double() - theirs).abs() <= error).all())
    if before.limit is not None:
        assert abs(float(after.limit) - exact.limit) <= bound.limit
    if before.param.numel():
        moved = (exact.param - before.param.double()).abs().mean()
        assert bound.param.mean() < moved or not moved

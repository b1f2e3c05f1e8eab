"""Adafactor with a sketched momentum: the kernel against float64, its tiers, and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from lowrank_core import _core
from lowrank_core.ops.subspace_step.sketched import sketched_list
from lowrank_core.reference.subspace_step import sketched_step
from testing import machine
from testing.tolerance import UNIT, gamma
from torch import Tensor

SHAPES = ((1, 1, 1), (5, 7, 2), (64, 33, 9), (65, 200, 16), (131, 64, 17), (301, 407, 50))  # tasks have 64 lines
OPTIONS: dict[str, Any] = {
    "beta1": 0.7, "eps": 1e-4, "threshold": 0.5, "lr": 0.1, "weight_decay": 0.2, "maximize": False,
    "stochastic": False, "precision": "highest",
}  # fmt: skip
DECAY = 0.6


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weight(shape: tuple[int, int, int], right: bool, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """One weight and what belongs to it; rows of very different size, strided, the gradient by columns."""
    (m, n, r), work = shape, torch.float64 if dtype == torch.float64 else torch.float32
    side = n if right else m
    low = (m, r) if right else (r, n)
    grad = (numbers(n, m, seed=1).mT * torch.logspace(-3, 3, m)[:, None]).to(dtype)
    return {
        "param": numbers(m, 2 * n, seed=2).to(dtype)[:, ::2], "grad": grad,
        "basis": (numbers(side, r, seed=3) / r**0.5).to(work), "exp_avg": numbers(*low, seed=4).to(work),
        "row": numbers(m, seed=5).square(), "col": numbers(n, seed=6).square(),
    }  # fmt: skip


def step(weights: Sequence[dict[str, Any]], rights: Sequence[bool], **options: Any) -> None:
    """Steps the weights in place."""
    lists = [[w[key] for w in weights] for key in ("param", "grad", "basis", "exp_avg")]
    means = [[w[key] for w in weights] for key in ("row", "col")]
    count = len(weights)
    sketched_list(
        *lists, [], *means, list(rights), [3] * count, list(range(count)), [DECAY] * count, **{**OPTIONS, **options}
    )


@pytest.mark.parametrize("level", _core.isa_levels())
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_what_float64_says(
    shape: tuple[int, int, int], dtype: torch.dtype, right: bool, maximize: bool, level: str
) -> None:
    w = weight(shape, right, dtype)
    before = {key: value.clone() for key, value in w.items()}
    with machine.isa(level):
        step([w], [right], maximize=maximize)
    options = {key: value for key, value in OPTIONS.items() if key not in ("stochastic", "precision", "maximize")}
    theirs = sketched_step(*before.values(), right=right, decay=DECAY, maximize=maximize, **options)
    (m, n, r), unit = shape, UNIT[torch.float32]
    single = 8 * unit  # the means are float32, and so are the factors that are made of them
    assert bool(((w["row"] - theirs.row_means).abs() <= 2 * unit * theirs.row_means).all())
    assert bool(((w["col"] - theirs.col_means).abs() <= 2 * unit * theirs.col_means).all())

    x = (
        before["grad"].double().abs()
        / (torch.outer(theirs.row_means, theirs.col_means) / theirs.row_means.mean()).sqrt()
    )
    p, c, rest = before["basis"].double().abs(), before["exp_avg"].double().abs(), 1 - OPTIONS["beta1"]
    low, lifted = (x @ p, c @ p.mT) if right else (p.mT @ x, p @ c)
    sums = gamma(max(m, n, r) + 8, dtype)
    error = rest * (sums + single) * low + 4 * UNIT[dtype] * (c + low)
    assert bool(((w["exp_avg"] - theirs.exp_avg).abs() <= error).all())
    # The divisor comes from a squared norm, of terms that are off by their sums' bounds.
    y = (rest * x + OPTIONS["beta1"] * lifted).square().sum()
    plain = theirs.direction.square().sum()
    divisor = (2 * sums + 2 * single) * y / plain
    sizes = (sums + single) * (rest * x + OPTIONS["beta1"] * lifted) + divisor * theirs.direction.abs()
    bound = OPTIONS["lr"] * sizes + 4 * UNIT[dtype] * (before["param"].double().abs() + theirs.param.abs())
    assert bool(((w["param"] - theirs.param).abs() <= bound).all())


@pytest.mark.parametrize("level", _core.isa_levels())
def test_threads_and_lists_do_not_change_a_bit(level: str) -> None:
    rights = [i % 2 == 1 for i in range(len(SHAPES))]
    dtypes = (torch.float32, torch.bfloat16, torch.float64)
    found = []
    with machine.isa(level):
        for count in (1, 2, 3):
            weights = [weight(s, right, dtypes[i % 3]) for i, (s, right) in enumerate(zip(SHAPES, rights, strict=True))]
            with machine.threads(count):
                step(weights, rights, stochastic=True)
            found.append([value for w in weights for value in w.values()])
    assert all(map(torch.equal, found[0], found[1])) and all(map(torch.equal, found[0], found[2]))


def test_a_gradient_of_zeros_moves_the_momentum_on() -> None:
    w = weight((12, 20, 4), False)
    w["grad"].zero_()
    w["row"].zero_()
    w["col"].zero_()
    before = w["exp_avg"].clone()
    step([w], [False], eps=0.0)
    assert not w["row"].any() and bool(w["param"].isfinite().all())
    assert bool(((w["exp_avg"] - 0.7 * before).abs() <= 2 * UNIT[torch.float32] * before.abs()).all())


def test_weights_that_share_memory_are_stepped_in_turn() -> None:
    ours, theirs = ([weight((6, 9, 2), False) for _ in range(2)] for _ in range(2))
    ours[1]["param"] = ours[0]["param"]
    step(ours, [False, False])
    theirs[1]["param"] = theirs[0]["param"]
    step(theirs[:1], [False])
    step(theirs[1:], [False])
    assert torch.equal(ours[0]["param"], theirs[0]["param"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("row", torch.zeros(7)), ("col", torch.zeros(9, dtype=torch.float64)), ("basis", torch.zeros(7, 2)),
        ("exp_avg", torch.zeros(2, 8)), ("grad", torch.zeros(6, 8)),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(key: str, value: Tensor) -> None:
    w = {**weight((6, 9, 2), False), key: value}
    before = w["param"].clone()
    with pytest.raises(ValueError, match="subspace_step_"):
        step([w], [False])
    assert torch.equal(w["param"], before)

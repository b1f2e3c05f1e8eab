"""Adafactor with a sketched momentum: the kernel against float64, its tiers, and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from lowrank_core import _core
from lowrank_core.ops.subspace_step.codecs import decode_moment, encode_moment
from lowrank_core.ops.subspace_step.sketched import factored_list, sketched_list
from lowrank_core.optim.parts.rules.adafactor import Adafactor
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


def factored(shape: tuple[int, int], stored: str, dtype: torch.dtype) -> tuple[Tensor, list[Any], list[Any]]:
    """A low-rank gradient, and means of its rows and columns in mid-training: (values, scales)."""
    low = numbers(*shape, seed=1).to(dtype) * torch.logspace(-2, 2, shape[1])
    means: list[list[Any]] = []
    for size, seed in zip(shape, (2, 3), strict=True):
        value, scales = numbers(size, seed=seed).square().to(dtype), None
        if stored != "work":
            codes = torch.empty(size, dtype=torch.uint8 if stored == "int8" else torch.bfloat16)
            scales = torch.empty(-(-size // 256)) if stored == "int8" else None
            encode_moment(codes, scales, value, second=True, seed=5, step=2)
            value = codes
        means.append([value, scales])
    return low, *means


def direct(low: Tensor, row: list[Any], col: list[Any], seed: int = 5) -> None:
    """Its direction in its place."""
    held = [[[value], [] if scales is None else [scales]] for value, scales in (row, col)]
    factored_list([low], *held[0], *held[1], [3], [seed], [DECAY], eps=1e-4, threshold=0.5)


@pytest.mark.parametrize("level", _core.isa_levels())
@pytest.mark.parametrize(
    ("stored", "dtype"),
    [("work", torch.float32), ("bfloat16", torch.float32), ("int8", torch.float32), ("work", torch.float64)],
)
@pytest.mark.parametrize("shape", [(1, 1), (5, 300), (130, 7), (300, 257)], ids=str)
def test_directions_of_adafactor_are_those_of_the_rule(
    shape: tuple[int, int], stored: str, dtype: torch.dtype, level: str
) -> None:
    """The rule's statement on the decoded means, which are then stored with the words of second moments."""
    low, *means = factored(shape, stored, dtype)
    rule, kept = Adafactor(beta2=DECAY, eps=1e-4), {}
    for key, (value, scales) in zip(("exp_avg_sq_row", "exp_avg_sq_col"), means, strict=True):
        kept[key] = value.clone() if stored == "work" else torch.empty(value.shape)
        if stored != "work":
            decode_moment(kept[key], value, scales, second=True)
    exact = {key: value.double() for key, value in kept.items()}
    rule.advance(low.double(), exact, 10**9)  # a decay of beta2
    direction = rule.normalized(low.double(), exact)
    direction /= max(1.0, float(direction.square().mean().sqrt()) / 0.5)
    with machine.isa(level):
        direct(low, *means)
    unit = UNIT[torch.float32] if dtype == torch.float32 else 8 * UNIT[dtype]
    # Means, two factors, what they are rounded to, and two products; sums are float64.
    relative = gamma(8, dtype) + 2 * gamma(max(shape), torch.float64)
    assert bool(((low - direction).abs() <= relative * direction.abs()).all())
    for (value, scales), theirs in zip(means, exact.values(), strict=True):
        if stored == "work":
            assert bool(((value - theirs).abs() <= 2 * unit * theirs).all())
        elif stored == "int8":
            found = torch.empty(value.shape)
            decode_moment(found, value, scales, second=True)
            step = theirs.sqrt().max() / 255  # of codes, one to each side
            assert bool(((found.sqrt() - theirs.sqrt()).abs() <= step * (1 + 8 * unit)).all())
        else:
            assert bool(((value.double() - theirs).abs() <= 2 * UNIT[torch.bfloat16] * theirs).all())


@pytest.mark.parametrize("stored", ["work", "bfloat16", "int8"])
def test_directions_have_the_same_bits_with_any_number_of_threads(stored: str) -> None:
    found = []
    for count in (1, 2, 3):
        low, row, col = factored((300, 257), stored, torch.float32)
        with machine.threads(count):
            direct(low, row, col)
        found.append([low, *row, *col])
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True) if a is not None)
    low, row, col = factored((300, 257), stored, torch.float32)
    direct(low, row, col, seed=6)
    assert torch.equal(row[0], found[0][1]) == (stored == "work")  # the seed is that of the draws

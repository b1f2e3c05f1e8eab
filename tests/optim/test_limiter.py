"""The limiter of Fira and APOLLO: how S grows, when it is free, and what must not hold it down for ever."""

from __future__ import annotations

from itertools import pairwise
from math import sqrt
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lowrank_core.memory.geometry import place
from lowrank_core.optim import ApolloAdamW, FiraAdamW, LowRankOptimizer
from lowrank_core.optim.parts.residuals import Seen
from lowrank_core.optim.parts.residuals.limited import ScaledRest
from lowrank_core.optim.parts.rules import Direction
from lowrank_core.optim.parts.subspaces.dense import Dense
from lowrank_core.optim.slots import NO_DRAW
from optim_cases import composed, draw, same
from plain_steps import UNIT32, of, path
from torch import Tensor, nn

__all__ = ["path"]  # a fixture
SHAPE, RANK = (12, 20), 4
METHODS: dict[str, tuple[type[LowRankOptimizer], dict[str, Any]]] = {
    "fira": (FiraAdamW, {"scale": 0.0, "projector": "svd"}),  # S alone
    "fira-code": (FiraAdamW, {"scale": 0.0, "projector": "svd", "residual": "code", "limiter": 1.01}),
    "apollo": (ApolloAdamW, {"scale": 4.0}),
    "apollo-svd": (ApolloAdamW, {"projector": "svd", "proj_type": "right"}),
    "apollo-mini": (ApolloAdamW, {"scale_type": "tensor", "rank": 1, "scale": 128}),
}
every_method = pytest.mark.parametrize("method", METHODS)
with_both_paths = pytest.mark.usefixtures("path")
# S is computed in float64, its norm is kept in float32, and converted back and forth: four roundings.
ROUNDING = 4 * UNIT32


def optimizer_of(method: str, dtype: torch.dtype = torch.float64, **keys: Any) -> LowRankOptimizer:
    kind, own = METHODS[method]
    weight = nn.Parameter(torch.zeros(SHAPE, dtype=dtype))
    return kind([weight], **{"lr": 1.0, "rank": RANK, "update_proj_gap": 1000, **own, **keys})


def norms(method: str, grads: list[Tensor], **keys: Any) -> list[float]:
    """|S| of each step."""
    return [float(update.double().norm()) for update in of(optimizer_of(method, **keys), grads)]


def unbias(step: int, beta1: float = 0.9, beta2: float = 0.999) -> float:
    return sqrt(1 - beta2**step) / (1 - beta1**step)


def raw(sizes: list[float]) -> list[float]:
    """The norms before the bias correction."""
    return [size / unbias(step) for step, size in enumerate(sizes, 1)]


def gaussian(seed: int) -> Tensor:
    return draw(*SHAPE, seed=seed).double()


@with_both_paths
@every_method
def test_g7_a_constant_gradient(method: str) -> None:
    """S is free in step 1 and from step 44 on; between them it is damped, to 0.53 in step 9."""
    size, *others = sizes = norms(method, [gaussian(1)] * 60, eps=0.0)
    held, damped = raw(sizes)[0], [1.0]
    for step in range(2, 61):
        held = min(1.01 * held, size / unbias(step))  # without eps N is the sign of R for ever
        damped.append(held * unbias(step) / size)
    found = [1.0, *(other / size for other in others)]
    assert all(abs(x - y) <= step * ROUNDING for step, (x, y) in enumerate(zip(found, damped, strict=True), 1))
    assert found.index(min(found)) + 1 == 9 and round(min(found), 2) == 0.53
    assert [step for step, x in enumerate(found, 1) if x < 1 - 60 * ROUNDING] == list(range(2, 44))


@every_method
@given(powers=st.lists(st.integers(-6, 6), min_size=3, max_size=8))
def test_g7_growth_is_limited_and_nothing_else(method: str, powers: list[int]) -> None:
    """Whatever the gradients, and to the factor that is allowed, for both paths."""
    grads = [gaussian(number) * 2.0**power for number, power in enumerate(powers)]
    free, limited = raw(norms(method, grads, limiter=None)), raw(norms(method, grads))
    with composed():
        others = raw(norms(method, grads))
    for found in (limited, others):
        assert abs(found[0] - free[0]) <= ROUNDING * free[0]
        for (before, now), wanted in zip(pairwise(found), free[1:], strict=True):
            assert now <= 1.01 * before * (1 + 1e-6)
            allowed = min(wanted, 1.01 * before)
            assert abs(now - allowed) <= 2 * ROUNDING * allowed


@with_both_paths
@every_method
def test_what_shrinks_is_left_alone(method: str) -> None:
    """To the bit, as without a limiter: the mean fades faster than the root of the mean square."""
    grads = [gaussian(1), *[gaussian(1) / 64] * 8]
    limited, free = optimizer_of(method), optimizer_of(method, limiter=None)
    updates = of(free, grads)
    sizes = raw([float(update.norm()) for update in updates])
    assert all(now < 0.97 * before for before, now in pairwise(sizes))
    assert same(of(limited, grads), updates)


@with_both_paths
@every_method
@pytest.mark.parametrize("first", [0.0, 1e-30, 1e-20, 1e-14, 1e-11])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
def test_a_first_gradient_of_next_to_nothing_traps_nothing(method: str, first: float, dtype: torch.dtype) -> None:
    grads = [first * gaussian(1), gaussian(2), gaussian(3)]
    limited = of(optimizer_of(method, dtype), grads)
    free = of(optimizer_of(method, dtype, limiter=None), grads)
    assert same(limited[:2], free[:2])
    assert limited[1].norm() > 1


@with_both_paths
@every_method
def test_a_gradient_of_zeros_on_the_way_traps_nothing(method: str) -> None:
    grads = [gaussian(1), gaussian(2), 0 * gaussian(1), 8 * gaussian(3)]
    limited, free = optimizer_of(method), optimizer_of(method, limiter=None)
    rests = of(limited, grads[:3]), of(free, grads[:3])
    assert rests[0][2].norm() == 0 and rests[1][2].norm() == 0
    assert float(limited.state_dict()["state"][0]["residual.limit"]) == 0
    assert same(of(limited, grads[3:]), of(free, grads[3:]))


@with_both_paths
@pytest.mark.parametrize("rank_of_gradient", [1, RANK])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_gradient_that_the_subspace_holds_whole_traps_nothing(dtype: torch.dtype, rank_of_gradient: int) -> None:
    """As that of fewer tokens than the rank: what is left of it is rounding, and the next one has a rest again."""
    left, right = draw(SHAPE[0], rank_of_gradient).double(), draw(rank_of_gradient, SHAPE[1]).double()
    grads = [left @ right, gaussian(1)]
    limited, free = optimizer_of("fira", dtype), optimizer_of("fira", dtype, limiter=None)
    assert same(of(limited, grads), of(free, grads))
    after = float(limited.state_dict()["state"][0]["residual.limit"])
    assert after > 0
    grown = of(limited, [gaussian(2) * 2.0**6])[0]
    assert raw([1.0, 1.0, float(grown.double().norm())])[2] <= 1.01 * after * (1 + 2.0**-6)


@with_both_paths
@every_method
def test_none_never_binds(method: str) -> None:
    sizes = raw(norms(method, [gaussian(1)] * 12, limiter=None, eps=0.0))
    assert all(now > 1.02 * before for before, now in pairwise(sizes[:5]))
    optimizer = optimizer_of(method, limiter=None)
    of(optimizer, [gaussian(1)] * 3)
    assert float(optimizer.state_dict()["state"][0]["residual.limit"]) == 0


@with_both_paths
@every_method
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_leaves_the_norm_alone(method: str, value: float) -> None:
    optimizer, clean = optimizer_of(method), optimizer_of(method)
    of(optimizer, [gaussian(1), gaussian(2)]), of(clean, [gaussian(1), gaussian(2)])
    bad = gaussian(3)
    bad[3, 5] = value
    assert of(optimizer, [bad])[0].norm() == 0 and optimizer.skipped_steps == 1
    assert 0 < float(optimizer.state_dict()["state"][0]["residual.limit"]) < torch.inf
    assert same(of(optimizer, [gaussian(3)]), of(clean, [gaussian(3)]))


@with_both_paths
@every_method
def test_the_limit_is_the_callers(method: str) -> None:
    sizes = {limiter: raw(norms(method, [gaussian(1)] * 2, eps=0.0, limiter=limiter)) for limiter in (1.0, 1.25)}
    for limiter, (before, now) in sizes.items():
        assert abs(now - limiter * before) <= 2 * ROUNDING * now


def test_a_rule_without_bias_corrections_is_limited_by_the_norms_as_they_are() -> None:
    residual, rest, low = ScaledRest(limiter=2.0), draw(*SHAPE), draw(RANK, SHAPE[1], seed=1)
    where, _ = place(SHAPE, RANK, "std", False)
    assert where is not None
    seen = Seen(rest, low, Direction(low), Dense({}), where, None, None, NO_DRAW)
    state = {"residual.limit": torch.zeros(())}
    for grown in (1.0, 1.5, 2.5):
        before = state["residual.limit"].clone()
        found = residual.limited_(rest * grown, seen, state).norm()
        assert abs(found - (grown * rest.norm() if grown < 2 else 2 * before)) <= 16 * UNIT32 * found
        assert abs(state["residual.limit"] - found) <= 16 * UNIT32 * found
        state["residual.limit"].copy_(rest.norm())

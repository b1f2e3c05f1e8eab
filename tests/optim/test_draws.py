"""Random words: of each weight its own, by the seed, by the number of the step; none where nothing is rounded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lowrank_core.optim import GaLoreAdamW
from optim_cases import draw, same
from torch import Tensor, nn

SHAPE = (40, 24)
# Bases of equal gradients are equal where they are exact: what differs then are the words of the rounding.
PATHS: dict[str, dict[str, Any]] = {
    "plain": {"rank": None},
    "kernel": {"rank": 4},
    "both sides": {"rank": 4, "proj_type": "full"},
}
every_path = pytest.mark.parametrize("path", PATHS)
# What draws: the weight alone, the moments alone, or both.
STORED: dict[str, dict[str, str]] = {
    "weights": {"rounding": "stochastic", "moment_dtype": "float32"},
    "bfloat16 moments": {"rounding": "nearest", "moment_dtype": "bfloat16"},
    "int8 moments": {"rounding": "nearest", "moment_dtype": "int8"},
    "moments by default": {},
}


def stepped(path: str, seed: int, count: int = 2, **keys: str) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """`count` equal weights after two steps with equal gradients, and their states."""
    weights = [nn.Parameter(draw(*SHAPE).bfloat16()) for _ in range(count)]
    optimizer = GaLoreAdamW(weights, lr=0.01, projector="svd", seed=seed, **PATHS[path], **keys)
    for number in (1, 2):
        for weight in weights:
            weight.grad = draw(*SHAPE, seed=number).bfloat16()
        optimizer.step()
    return [weight.detach() for weight in weights], [dict(optimizer.state[weight]) for weight in weights]


def drawn(what: str, path: str, weight: Tensor, state: dict[str, Any]) -> list[Tensor]:
    """What the words went into."""
    if what == "weights":
        return [weight]
    return [value for key, value in state.items() if key.startswith("exp_avg") and not key.endswith("scales")]


@every_path
@pytest.mark.parametrize("what", STORED)
def test_equal_weights_draw_their_own_words(what: str, path: str) -> None:
    weights, states = stepped(path, 0, **STORED[what])
    pairs = zip(*(drawn(what, path, w, s) for w, s in zip(weights, states, strict=True)), strict=True)
    assert not any(same(one, other) for one, other in pairs)


@every_path
@pytest.mark.parametrize("what", STORED)
def test_the_seed_decides_the_words(what: str, path: str) -> None:
    ends = [stepped(path, seed, **STORED[what]) for seed in (5, 5, 6, -5)]
    assert same(ends[0], ends[1])
    for other in ends[2:]:
        for number in range(2):
            pair = (drawn(what, path, end[0][number], end[1][number]) for end in (ends[0], other))
            assert not any(same(one, another) for one, another in zip(*pair, strict=True))


@every_path
def test_where_nothing_is_drawn_for_neither_place_nor_seed_shows(path: str) -> None:
    weights, states = stepped(path, 0, rounding="nearest", moment_dtype="float32")
    others, _ = stepped(path, 1, rounding="nearest", moment_dtype="float32")
    assert same(weights[0], weights[1]) and same(states[0], states[1]) and same(weights, others)


@every_path
def test_each_step_has_words_of_its_own(path: str) -> None:
    """The same weight and update again: without memory (betas 0) a step is a function of both and of its words."""
    weight = nn.Parameter(draw(*SHAPE).bfloat16())
    start, ends = weight.detach().clone(), []
    keys: dict[str, Any] = {"lr": 2.0**-9, "betas": (0.0, 0.0), "rounding": "stochastic", "moment_dtype": "float32"}
    optimizer = GaLoreAdamW([weight], projector="svd", **keys, **PATHS[path])
    for _ in range(3):
        weight.detach().copy_(start)
        weight.grad = draw(*SHAPE, seed=1).bfloat16()
        optimizer.step()
        ends.append(weight.detach().clone())
    assert not same(ends[0], ends[1]) and not same(ends[1], ends[2]) and not same(ends[0], ends[2])


@every_path
def test_draws_have_no_bias(path: str) -> None:
    """Of many weights with the same step each element is, in the mean, what it would be in float32."""
    count, keys = 64, {"rounding": "stochastic", "moment_dtype": "float32"}
    weights, _ = stepped(path, 3, count, **keys)
    exact = nn.Parameter(draw(*SHAPE).bfloat16().float())
    optimizer = GaLoreAdamW([exact], lr=0.01, projector="svd", **PATHS[path])
    for number in (1, 2):
        exact.grad = draw(*SHAPE, seed=number).bfloat16().float()
        optimizer.step()
    mean = torch.stack([weight.double() for weight in weights]).mean(0)
    spacing = 2.0**-7 * torch.stack([weight.double().abs() for weight in weights]).amax(0)
    # Two roundings by at most one spacing each, of half a spacing's deviation at most; six standard errors; and the
    # bases, which a bfloat16 weight stores in bfloat16.
    basis = 2 * 2 * 0.01 * 24 * 2.0**-8
    assert bool(((mean - exact.double()).abs() <= 6 * spacing * 2**0.5 / (2 * count**0.5) + basis).all())

"""Tier D1: the same bits whatever the threads, the list or the library; D0 for what is rounded to a code."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from lowrank_core import _core
from subspace_cases import (
    DTYPES,
    LARGE,
    LIMITED,
    RESIDUALS,
    RULES,
    SIDES,
    STRONG,
    Shape,
    Weight,
    every_residual,
    every_rule,
    every_side,
    stepped,
    take,
    weight,
)
from testing import checks, machine

MIXED = (LARGE, Shape(17, 90, 3), Shape(128, 31, 9), Shape(301, 407, 50), Shape(1, 1, 1), Shape(3, 0, 2))


def mixed(rule: str, residual: str, dtypes: tuple[torch.dtype, ...] = DTYPES) -> list[Weight]:
    """Weights of every shape, side and dtype, each with its own step number and seed."""
    limit = 3.0 if residual in LIMITED else None
    return [
        weight(s, side=SIDES[i % 2], dtype=dtypes[i % len(dtypes)], rule=rule, step=1 + i, seed=i, limit=limit)
        for i, s in enumerate(MIXED)
    ]


def states(weights: list[Weight]) -> list[Any]:
    return [w.state() for w in weights]


@every_residual
@every_rule
def test_threads_and_lists_do_not_change_a_bit(rule: str, residual: str) -> None:
    options = {**STRONG, "rule": rule, "residual": residual, "rounding": "stochastic"}
    found = []
    for count in (1, 2, 3):
        weights = mixed(rule, residual)
        with machine.threads(count):
            assert take(*weights, **options)
        found.append(states(weights))
    assert checks.same_bits(found[0], found[1]) and checks.same_bits(found[0], found[2])
    alone = [stepped(w, **options) for w in mixed(rule, residual)]
    assert checks.same_bits(found[0], states(alone))


@pytest.mark.parametrize("level", _core.isa_levels())
@every_residual
def test_every_level_repeats_its_bits_for_any_threads(residual: str, level: str) -> None:
    with machine.isa(level):
        found = []
        for count in (1, 3):
            weights = mixed("adam", residual)
            with machine.threads(count):
                assert take(*weights, residual=residual, **STRONG)
            found.append(states(weights))
    assert checks.same_bits(*found)


@every_residual
@every_rule
def test_numpy_and_torch_agree_to_the_bit(rule: str, residual: str) -> None:
    options = {**STRONG, "rule": rule, "residual": residual}
    kinds = (torch.float32, torch.float64)
    from_torch, from_numpy = mixed(rule, residual, kinds), [w.numpy() for w in mixed(rule, residual, kinds)]
    assert take(*from_torch, **options) is True and take(*from_numpy, **options) is True
    assert all(isinstance(x, np.ndarray) for w in from_numpy for x in w.state())
    assert checks.same_bits(states(from_torch), states(from_numpy))


@every_side
@pytest.mark.parametrize("what", ["seed", "step"])
def test_draws_follow_seed_and_step(what: str, side: str) -> None:
    """A weight draws by its own seed and step number, not by its place in the list; None is seed 0."""
    options = {"rounding": "stochastic", "rule": "lion", "lr": 0.25}  # of the step, Lion takes only the draws
    first, second = (weight(Shape(40, 60, 4), side=side, dtype=torch.bfloat16, rule="lion") for _ in range(2))
    setattr(second, what, 1234567)
    alone = [stepped(w, **options).param for w in (first, second)]
    assert not checks.same_bits(*alone)
    together = [second.clone(), first.clone()]
    assert take(*together, **options)
    assert checks.same_bits([w.param for w in together], alone[::-1])
    unseeded = first.clone()
    assert take(unseeded, seeds=None, **options)
    assert checks.same_bits(unseeded.param, alone[0])


def test_large_seeds() -> None:
    w = weight(Shape(40, 60, 4), dtype=torch.bfloat16)
    found = []
    for w.seed in (0, 1, 2**32, 2**63 - 1):
        found.append(tuple(stepped(w, rounding="stochastic", lr=0.25).param.flatten().tolist()))
    assert len(set(found)) == len(found)


def test_global_generators_are_left_alone() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)

    def generators() -> tuple[Any, ...]:
        kind, keys, *rest = np.random.get_state()
        return torch.get_rng_state().tolist(), kind, keys.tolist(), rest, random.getstate()

    before = generators()
    for rule, residual in zip(RULES, RESIDUALS[1:], strict=True):
        assert take(*mixed(rule, residual), rule=rule, residual=residual, rounding="stochastic", lr=0.1)
    assert generators() == before

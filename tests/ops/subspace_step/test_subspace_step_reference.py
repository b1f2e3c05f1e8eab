"""Every rule, residual, side and dtype against the float64 reference, on shapes around vectors and tiles."""

from __future__ import annotations

import itertools

import pytest
import torch
from lowrank_core import _core
from subspace_cases import (
    DTYPES,
    EMPTY,
    LARGE,
    LIMITED,
    RULES,
    SHAPES,
    SIDES,
    STRONG,
    Shape,
    Weight,
    check,
    every_residual,
    every_rule,
    every_side,
    stepped,
    take,
    weight,
)
from testing import cases, machine

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@every_dtype
@every_side
@every_residual
@every_rule
def test_agrees_with_the_reference(rule: str, residual: str, side: str, dtype: torch.dtype) -> None:
    """All shapes in one list."""
    options = {**STRONG, "rule": rule, "residual": residual}
    before = [weight(s, side=side, dtype=dtype, rule=rule, seed=i) for i, s in enumerate(SHAPES)]
    after = [w.clone() for w in before]
    assert take(*after, **options)
    for old, new in zip(before, after, strict=True):
        check(old, new, **options)


@every_side
@every_residual
def test_empty_ones(residual: str, side: str) -> None:
    for rule, shape, dtype in itertools.product(RULES, EMPTY, DTYPES):
        w = weight(shape, side=side, dtype=dtype, rule=rule)
        check(w, stepped(w, rule=rule, residual=residual, **STRONG), rule=rule, residual=residual, **STRONG)


@every_residual
@every_rule
def test_large_and_small_side_by_side(rule: str, residual: str) -> None:
    """Weights of both sides and all dtypes in one list, the large ones worked on by all threads."""
    options = {**STRONG, "rule": rule, "residual": residual, "maximize": True}
    kinds = [(LARGE, "left", torch.float32), (LARGE, "right", torch.bfloat16), (LARGE, "left", torch.float64)]
    kinds += [(SHAPES[2 + i], SIDES[i % 2], DTYPES[i % 4]) for i in range(5)]
    limit = 3.0 if residual in LIMITED else None
    before = [weight(s, side=side, dtype=d, rule=rule, step=1 + i, limit=limit) for i, (s, side, d) in enumerate(kinds)]
    after = [w.clone() for w in before]
    with machine.threads(2):
        assert take(*after, **options)
    for old, new in zip(before, after, strict=True):
        check(old, new, **options)


@pytest.mark.parametrize("level", _core.isa_levels())
@every_residual
@every_rule
def test_every_level(rule: str, residual: str, level: str) -> None:
    limit = 3.0 if residual in LIMITED else None
    options = {**STRONG, "rule": rule, "residual": residual}
    with machine.isa(level):
        for side, dtype, shape in itertools.product(SIDES, DTYPES, (SHAPES[4], Shape(83, 131, 9))):
            w = weight(shape, side=side, dtype=dtype, rule=rule, limit=limit)
            check(w, stepped(w, **options), **options)


@pytest.mark.parametrize("residual", ["scaled", "sign"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_of_gradient_and_basis(dtype: torch.dtype, residual: str) -> None:
    options = {**STRONG, "residual": residual}
    for grad, basis, side in itertools.product(DTYPES, DTYPES, SIDES):
        w = weight(Shape(37, 45, 6), side=side, dtype=dtype)
        if dtype != torch.float64:  # wider ones are read in float32
            w = Weight(w.param, w.grad.float(), w.basis.float(), w.exp_avg, w.exp_avg_sq, side)
        w.grad, w.basis = w.grad.to(grad), w.basis.to(basis)
        check(w, stepped(w, **options), **options)


OPTIONS = {
    "defaults": {"lr": 0.25},
    "no decay of moments": {"lr": 0.25, "betas": (0.0, 0.0), "eps": 0.1},
    "long memory": {"lr": 0.25, "betas": (0.99, 0.9999)},
    "climbing": {"lr": 0.25, "maximize": True, "weight_decay": 0.3},
    "decay alone": {"lr": 0.25, "weight_decay": 0.5, "scale": 0.0, "residual_scale": 0.0},
    "decay beyond zero": {"lr": 2.0, "weight_decay": 0.75},
    "other way": {"lr": 0.25, "scale": -1.5, "residual_scale": -0.5},
    "still": {"lr": 0.0, "weight_decay": 0.5},
}


@pytest.mark.parametrize("step", [1, 2, 1000, 2**31])
@pytest.mark.parametrize("name", OPTIONS)
@every_residual
def test_hyperparameters(residual: str, name: str, step: int) -> None:
    for side in SIDES:
        w = weight(Shape(cases.VECTOR + 3, cases.TILE_COLS + 5, 4), side=side, step=step)
        options = {**OPTIONS[name], "residual": residual}
        after = stepped(w, **options)
        check(w, after, **options)
        assert name != "still" or torch.equal(after.param, w.param)


@pytest.mark.parametrize("level", _core.isa_levels())
@every_residual
@every_side
def test_medium_rounds_the_operands_or_nothing(side: str, residual: str, level: str) -> None:
    """Where bfloat16 is faster, products of float32 have the error of two roundings; elsewhere and for float64 none."""
    for dtype in (torch.float32, torch.float64):
        options = {**STRONG, "residual": residual, "precision": "medium"}
        w = weight(Shape(83, 131, 9), side=side, dtype=dtype)
        with machine.isa(level):
            after = stepped(w, **options)
            check(w, after, **options)
            if dtype == torch.float64:
                assert torch.equal(after.param, stepped(w, **{**options, "precision": "highest"}).param)
            with machine.matmul_precision("medium"):
                assert torch.equal(stepped(w, **{**options, "precision": None}).param, after.param)


@pytest.mark.parametrize("level", _core.isa_levels())
@pytest.mark.parametrize("live", [4, 5])  # of an even number the lower one in the middle counts
@pytest.mark.parametrize("limit", [None, 3.0])
@every_side
def test_a_cap_counts_in_medians_of_live_channels(side: str, limit: float | None, live: int, level: str) -> None:
    """Most channels have neither a gradient nor a momentum: their phi_j are 0, and hold the others down in no way."""
    w = weight(Shape(23, 12, 4), side=side, limit=limit)
    for array in (w.grad, w.exp_avg):
        (array if side == "left" else array.mT)[:, live:] = 0.0
    for cap in (1.0, 1.1, 1e6):
        options = {**STRONG, "residual": "channel", "cap": cap}
        with machine.isa(level):
            after, uncapped = stepped(w, **options), stepped(w, **{**options, "cap": float("inf")})
        check(w, after, **options)
        assert torch.equal(after.param, uncapped.param) == (cap == 1e6)


def test_nothing_to_do() -> None:
    assert take(lr=0.1)


@every_rule
@every_side
def test_moments_of_an_empty_weight_are_moved(side: str, rule: str) -> None:
    """Nothing meets the basis: R is zero, and the moments decay as those of any weight with such an R."""
    w = weight(Shape(0, 5, 2), side=side, rule=rule)
    check(w, stepped(w, lr=0.1, rule=rule), lr=0.1, rule=rule)

"""GeoLoRA's basis step: the projection identity, truncation, gauges, degenerate gradients, budgets, lists."""

from __future__ import annotations

from typing import Any

import chain_cases
import lowrank_core
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lowrank_core import _core
from lowrank_core.reference import rsvd_augment as reference
from testing import cases, checks, layouts, machine, tolerance
from torch import Tensor

ALL = {"lr": 0.3, "tol": 0.0, "max_rank": 100}
SHAPES = ((12, 9, 3), (9, 12, 3), (40, 33, 8), (5, 5, 3), (6, 4, 4), (7, 20, 5), (1, 1, 1), (97, 64, 1))


class Layer:
    """u, s, v and the gradient of the full weight, float64."""

    def __init__(self, m: int, n: int, r: int, seed: int = 0, *, zero: bool = False) -> None:
        self.u, self.v = cases.orthonormal(m, r, seed + 1), cases.orthonormal(n, r, seed + 2)
        self.s = torch.zeros(r, r).double() if zero else chain_cases.normal(r, r, seed=seed + 3)
        self.g = chain_cases.normal(m, n, seed=seed + 4)

    def arrays(self, dtype: torch.dtype = torch.float64) -> list[list[Tensor]]:
        gv, gu = self.g @ self.v, self.g.mT @ self.u
        return [[x.to(dtype)] for x in (self.u, self.s, self.v, gv, gu)]

    def step(self, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
        return lowrank_core.augment_truncate(*self.arrays(dtype), **options)[0]

    def target(self, lr: float = 0.3) -> Tensor:
        return reference.before_truncation(self.u, self.s, self.v, self.g, lr)


def product(step: Any) -> Tensor:
    return step.u.double() @ step.s.double() @ step.v.double().mT


def allowed(layer: Layer, dtype: torch.dtype) -> float:
    """Of a matrix that came from the layer: a factorization of what W and the gradient weigh together."""
    m, n = layer.g.shape
    size = tolerance.norm(layer.s) + tolerance.norm(layer.g)
    return 4 * tolerance.coefficients(torch.ones(m, n, dtype=dtype), min(m, n)) * size / (m * n) ** 0.5


def allowed_truncated(layer: Layer, rank: int) -> float:
    """Of the best approximation of a rank: what perturbs the matrix turns the two spaces that a gap in its values
    parts, by itself over the gap each, and the values on either side with them."""
    values = torch.linalg.svdvals(layer.target())
    after = values[rank] if rank < values.numel() else torch.zeros(())
    return allowed(layer, torch.float64) * (1 + 4 * float(values[0] / (values[rank - 1] - after)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32), ids=str)
@pytest.mark.parametrize("zero", (False, True))
def test_before_truncation_it_is_the_projected_gradient_step(
    shape: tuple[int, int, int], dtype: torch.dtype, zero: bool
) -> None:
    """U S Vᵀ - lr P_T(G), from S = 0 on, also where 2 r exceeds a side."""
    layer = Layer(*shape, zero=zero)
    step = layer.step(dtype, **ALL)
    assert tolerance.norm(product(step) - layer.target()) <= allowed(layer, dtype)
    assert step.u.dtype == dtype and step.lost <= allowed(layer, dtype)
    for q in (step.u, step.v):
        checks.assert_orthonormal(q, min(layer.g.shape))
    checks.assert_signs(step.u)
    values = step.s.diagonal()
    assert torch.equal(step.s, torch.diag(values)) and bool((values.diff() <= 0).all()) and bool((values >= 0).all())


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_half_precision_gives_float32_factors(dtype: torch.dtype) -> None:
    layer = Layer(30, 20, 4)
    rounded = [[x[0].to(dtype)] for x in layer.arrays()]
    step = lowrank_core.augment_truncate(*rounded, **ALL)[0]
    assert {x.dtype for x in step[:5]} == {torch.float32}
    for q in (step.u, step.v):
        checks.assert_orthonormal(q, 20)


@given(st.floats(0.01, 0.9), st.integers(1, 6), st.integers(0, 1000))
def test_truncation_cuts_what_the_tolerance_says(tol: float, max_rank: int, seed: int) -> None:
    layer = Layer(14, 11, 3, seed)
    step = layer.step(lr=0.3, tol=tol, max_rank=max_rank)
    u, values, v = reference.augment_truncate(layer.u, layer.s, layer.v, layer.g, lr=0.3, tol=tol, max_rank=max_rank)
    rank, full = step.u.shape[1], layer.target()
    assert rank == values.numel() <= max_rank
    rounding = allowed(layer, torch.float64)
    assert abs(tolerance.norm(full - product(step)) - step.lost * tolerance.norm(full)) <= rounding
    assert tolerance.norm(product(step) - (u * values) @ v.mT) <= allowed_truncated(layer, rank)
    if rank < max_rank:
        assert step.lost <= tol + rounding


@given(st.integers(0, 1000), st.integers(3, 6))
def test_gauges_do_not_matter_also_where_the_rank_is_cut(seed: int, max_rank: int) -> None:
    """(U, S, V) -> (U P, Pᵀ S Q, V Q) is the same matrix and gives the same one."""
    layer, other = Layer(14, 11, 3, seed), Layer(14, 11, 3, seed)
    p, q = cases.orthonormal(3, 3, seed + 5), cases.orthonormal(3, 3, seed + 6)
    other.u, other.s, other.v = layer.u @ p, p.mT @ layer.s @ q, layer.v @ q
    found = [product(x.step(lr=0.3, tol=0.0, max_rank=max_rank)) for x in (layer, other)]
    assert tolerance.norm(found[0] - found[1]) <= 2 * allowed_truncated(layer, max_rank)


@given(st.integers(0, 1000))
def test_transposition(seed: int) -> None:
    layer, turned = Layer(14, 11, 3, seed), Layer(14, 11, 3, seed)
    turned.u, turned.s, turned.v, turned.g = layer.v, layer.s.mT, layer.u, layer.g.mT
    steps = [x.step(lr=0.3, tol=0.05, max_rank=6) for x in (layer, turned)]
    difference = product(steps[0]) - product(steps[1]).mT
    assert tolerance.norm(difference) <= 2 * allowed_truncated(layer, steps[0].u.shape[1])


def test_a_gradient_outside_the_tangent_space_changes_nothing() -> None:
    layer = Layer(14, 11, 3)
    layer.g = layer.g - reference.tangent(layer.g, layer.u, layer.v)
    step = layer.step(lr=0.3, tol=1e-8, max_rank=6)
    assert step.u.shape[1] == 3
    assert tolerance.norm(product(step) - layer.target(0.0)) <= allowed(layer, torch.float64)


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32), ids=str)
@pytest.mark.parametrize("kind", ("inside", "zero", "one"))
def test_rank_deficient_augmentation(kind: str, dtype: torch.dtype) -> None:
    """G V inside the span of U, zero, or of rank one: what has no direction gets one, and a zero block."""
    layer = Layer(14, 11, 3)
    if kind == "inside":
        layer.g = layer.u @ chain_cases.normal(3, 3, seed=8) @ layer.v.mT
    elif kind == "zero":
        layer.g = torch.zeros_like(layer.g)
    else:
        layer.g = chain_cases.normal(14, 1, seed=8) @ chain_cases.normal(1, 11, seed=9)
    step = layer.step(dtype, lr=0.3, tol=1e-4, max_rank=6)
    assert step.u.shape[1] <= (4 if kind == "one" else 3)
    cut = step.lost * tolerance.norm(layer.target())
    assert tolerance.norm(product(step) - layer.target()) <= allowed(layer, dtype) + cut
    full = layer.step(dtype, lr=0.3, tol=0.0, max_rank=6, min_rank=6)
    assert full.u.shape == (14, 6)
    for q in (full.u, full.v):
        checks.assert_orthonormal(q, 11)


def test_nothing_at_all_keeps_the_smallest_rank() -> None:
    layer = Layer(9, 8, 3, zero=True)
    layer.g = torch.zeros_like(layer.g)
    step = layer.step(lr=0.3, tol=0.1, max_rank=6, min_rank=2)
    assert step.u.shape == (9, 2) and not step.s.any() and step.lost == 0.0
    for q in (step.u, step.v):
        checks.assert_orthonormal(q, 8)


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32), ids=str)
def test_bases_stay_orthonormal_for_many_steps(dtype: torch.dtype) -> None:
    layer = Layer(30, 20, 4)
    for i in range(60):
        step = layer.step(dtype, lr=0.05, tol=0.01, max_rank=6)
        layer.u, layer.s, layer.v = (x.double() for x in step[:3])
        layer.g = chain_cases.normal(30, 20, seed=i)
    for q in (step.u, step.v):
        checks.assert_orthonormal(q, 20)


def test_rotations_move_what_belongs_to_s() -> None:
    """leftᵀ x right is the old core's place in the new one; with no step it is s itself."""
    layer = Layer(14, 11, 3)
    layer.g = torch.zeros_like(layer.g)
    step = layer.step(lr=1.0, tol=1e-8, max_rank=6)
    rounding = allowed(layer, torch.float64)
    assert tolerance.norm(step.left.mT @ layer.s @ step.right - step.s) <= rounding
    assert tolerance.norm(layer.u @ step.left - step.u) <= rounding


def test_a_direction_of_its_own_for_s() -> None:
    layer = Layer(14, 11, 3)
    arrays, gs = layer.arrays(), layer.u.mT @ layer.g @ layer.v
    given_gs = lowrank_core.augment_truncate(*arrays, gs=[gs], **ALL)[0]
    rounding = allowed(layer, torch.float64)
    assert tolerance.norm(product(given_gs) - layer.target()) <= rounding
    frozen = lowrank_core.augment_truncate(*arrays, gs=[torch.zeros_like(gs)], **ALL)[0]
    assert tolerance.norm(product(frozen) - layer.target() - 0.3 * layer.u @ gs @ layer.v.mT) <= rounding


def together(layers: list[Layer], dtype: torch.dtype) -> list[list[Tensor]]:
    """The arguments of one call."""
    return [[x[0] for x in column] for column in zip(*(layer.arrays(dtype) for layer in layers), strict=True)]


@given(st.integers(4, 30), st.integers(1, 2))
def test_budgets(budget: int, min_rank: int) -> None:
    """The largest values of all layers, each layer its least."""
    layers = [Layer(m, n, r, i) for i, (m, n, r) in enumerate(((14, 11, 3), (20, 9, 2)))]
    columns = together(layers, torch.float64)
    options = {"lr": 0.3, "tol": 0.0, "max_rank": 6, "min_rank": min_rank}
    free = lowrank_core.augment_truncate(*columns, **options)
    tight = lowrank_core.augment_truncate(*columns, **options, budget=budget)
    ranks = [x.u.shape[1] for x in tight]
    assert sum(ranks) == min(budget, sum(x.u.shape[1] for x in free)) and min(ranks) >= min_rank
    kept = torch.cat([x.s.diagonal()[min_rank:] for x in tight])
    lost = torch.cat([x.s.diagonal()[r:] for x, r in zip(free, ranks, strict=True)])
    assert not kept.numel() or not lost.numel() or kept.min() >= lost.max()
    weighted = lowrank_core.augment_truncate(*columns, **options, budget=2 * min_rank + 1, weights=[1e-9, 1.0])
    assert [x.u.shape[1] for x in weighted] == [min_rank, min_rank + 1]


def lists(dtype: torch.dtype = torch.float32) -> list[list[Tensor]]:
    layers = [Layer(*shape, i) for i, shape in enumerate(SHAPES)]
    return together(layers, dtype)


def plain(steps: Any) -> tuple[Any, ...]:
    return tuple(x for step in steps for x in step[:5])


@pytest.mark.parametrize("level", _core.isa_levels())
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32), ids=str)
def test_lists_threads_and_levels(level: str, dtype: torch.dtype) -> None:
    columns = lists(dtype)
    options = {"lr": 0.3, "tol": 0.1, "max_rank": 9}
    with machine.isa(level):
        results = []
        for count in (1, 2, 3):
            with machine.threads(count):
                results.append(plain(lowrank_core.augment_truncate(*columns, **options)))
        assert checks.same_bits(results[0], results[1]) and checks.same_bits(results[0], results[2])
        alone = [lowrank_core.augment_truncate(*([x] for x in row), **options)[0] for row in zip(*columns, strict=True)]
        assert checks.same_bits(results[0], plain(alone))
        layer = Layer(40, 33, 8)
        assert tolerance.norm(product(layer.step(dtype, **ALL)) - layer.target()) <= allowed(layer, dtype)


def test_numpy_equals_torch_and_strides_do_not_matter() -> None:
    columns = lists()
    from_torch = lowrank_core.augment_truncate(*columns, **ALL)
    from_numpy = lowrank_core.augment_truncate(*([x.numpy() for x in column] for column in columns), **ALL)
    assert all(isinstance(x, np.ndarray) for x in plain(from_numpy))
    assert checks.same_bits(plain(from_torch), plain(from_numpy))
    bent = [[layouts.embedded(x) for x in column] for column in columns]
    assert checks.same_bits(plain(from_torch), plain(lowrank_core.augment_truncate(*bent, **ALL)))
    assert lowrank_core.augment_truncate([], [], [], [], [], **ALL) == []


def test_refusals() -> None:
    u, s, v, gv, gu = Layer(9, 8, 3).arrays()
    call = lambda *a, **o: lowrank_core.augment_truncate(*a, **{**ALL, **o})  # noqa: E731
    for arguments, options, error, message in (
        ((u[0], s, v, gv, gu), {}, TypeError, "`u` must be a list of arrays, one for each layer, got one array"),
        ((u, s, v, gv, []), {}, ValueError, r"u, s, v, gv, gu must have the same length, got \[1, 1, 1, 1, 0\]"),
        ((u, [s[0][:2]], v, gv, gu), {}, ValueError, r"`s\[0\]` must be \[3, 3\] .* got shape \[2, 3\]"),
        ((u, s, v, gu, gv), {}, ValueError, r"`gv\[0\]` must be \[9, 3\]"),
        ((u, s, v, gv, gu), {"tol": -0.1}, ValueError, "`tol` must be >= 0 and finite, got -0.1"),
        ((u, s, v, gv, gu), {"lr": float("nan")}, ValueError, "`lr` must be finite, got nan"),
        ((u, s, v, gv, gu), {"max_rank": 0}, ValueError, "`max_rank` must be >= 1, got 0"),
        (
            (u, s, v, gv, gu),
            {"max_rank": 2, "min_rank": 3},
            ValueError,
            "`min_rank` must be between 1 and 2, got 3; it",
        ),
        ((u, s, v, gv, gu), {"budget": 0}, ValueError, "`budget` must be >= 1, got 0; 1 layers keep `min_rank` each"),
        ((u, s, v, gv, gu), {"weights": [1.0, 2.0]}, ValueError, "`weights` must hold one number for each of 1 layers"),
        ((u, s, v, gv, gu), {"weights": [-1.0]}, ValueError, r"`weights` must be >= 0 and finite, got \[-1.0\]"),
        ((u, s, v, [gv[0] * float("inf")], gu), {}, ValueError, r"`gv\[0\]` must be finite"),
        ((u, s, v, gv, gu), {"gs": [s[0] * float("nan")]}, ValueError, r"`gs\[0\]` must be finite"),
        (([u[0][:2]], s, v, [gv[0][:2]], gu), {}, ValueError, r"`u\[0\]` must have at most min\(m, n\) = 2 columns"),
        ((u, [s[0].numpy()], v, gv, gu), {}, TypeError, r"`s\[0\]` must be of the same library"),
    ):
        with pytest.raises(error, match=f"augment_truncate: {message}"):
            call(*arguments, **options)

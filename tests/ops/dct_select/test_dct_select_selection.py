"""Selection against the reference, and the invariants of choosing atoms of an orthogonal basis."""

from __future__ import annotations

import itertools
import math
from typing import Any

import dct_family as family
import lowrank_core
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lowrank_core import _core
from lowrank_core.reference import dct_select as reference
from testing import cases, checks, layouts, machine, tolerance
from torch import Tensor

SHAPES = [(1, 1), (1, 5), (6, 1), (2, 2), (33, 64), (64, 33), (64, 64), (97, 16), (16, 97), (65, 193), (130, 67)]
LEVELS = _core.isa_levels()


def fits(basis: str, n: int) -> bool:
    return basis != "hadamard" or n & (n - 1) == 0


@pytest.mark.parametrize("norm_ord", [1, 2])
@pytest.mark.parametrize("side", family.SIDES)
@pytest.mark.parametrize("basis", family.BASES)
@pytest.mark.parametrize("dtype", family.DTYPES, ids=str)
def test_against_the_reference(dtype: torch.dtype, basis: str, side: str, norm_ord: int) -> None:
    for m, n in SHAPES:
        length = m if side == "left" else n
        if not fits(basis, length):
            continue
        g = cases.gaussian(m, n).to(dtype)
        for rank in {0, 1, length // 3, length}:
            ours = lowrank_core.dct_select(g, rank, basis=basis, side=side, norm_ord=norm_ord)
            assert ours.coeffs.dtype == dtype
            family.assert_selection(g, ours, rank, basis=basis, side=side, norm_ord=norm_ord)


@pytest.mark.parametrize("side", family.SIDES)
@pytest.mark.parametrize("level", LEVELS)
def test_every_level(level: str, side: str) -> None:
    with machine.isa(level):
        for basis, (m, n) in itertools.product(family.BASES, [(64, 64), (128, 32)]):
            g = cases.gaussian(m, n).float()
            for norm_ord in (1, 2):
                ours = lowrank_core.dct_select(g, 9, basis=basis, side=side, norm_ord=norm_ord)
                family.assert_selection(g, ours, 9, basis=basis, side=side, norm_ord=norm_ord)


@pytest.mark.parametrize("basis", family.BASES)
def test_levels_choose_the_same_away_from_ties(basis: str) -> None:
    g = cases.gaussian(256, 128).float() * torch.logspace(0, -1, 128)
    chosen = []
    for level in LEVELS:
        with machine.isa(level):
            chosen.append(lowrank_core.dct_select(g, 30, basis=basis).indices)
    assert all(torch.equal(chosen[0], other) for other in chosen)


@pytest.mark.parametrize("side", family.SIDES)
def test_custom_atoms(side: str) -> None:
    g = cases.gaussian(70, 45, 2).float()
    n = 70 if side == "left" else 45
    q = cases.orthonormal(n, n)
    for atoms in (q.float(), q, layouts.transposed(q.float())):
        ours = lowrank_core.dct_select(g, 8, basis=atoms, side=side)
        family.assert_selection(g, ours, 8, basis=atoms, side=side)
        back = lowrank_core.dct_project_back(ours.coeffs, ours.indices, n, side=side, basis=atoms)
        exact = reference.dct_project_back(ours.coeffs, ours.indices, n, side=side, basis=atoms)
        assert tolerance.norm(back.double() - exact) <= tolerance.gamma(n, torch.float32) * tolerance.norm(ours.coeffs)


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize("side", family.SIDES)
def test_any_strides_and_nan_around(side: str, layout: str) -> None:
    g = cases.gaussian(35, 50, 2).float()
    make = layouts.LAYOUTS[layout]
    ours = lowrank_core.dct_select(make(g), 6, side=side)
    family.assert_selection(g, ours, 6, basis="dct2", side=side)
    n = 35 if side == "left" else 50
    back = lowrank_core.dct_project_back(make(ours.coeffs), ours.indices, n, side=side)
    exact = reference.dct_project_back(ours.coeffs, ours.indices, n, side=side)
    assert tolerance.norm(back.double() - exact) <= tolerance.transform(n, g.dtype) * tolerance.norm(ours.coeffs)


def test_the_side() -> None:
    """The shorter side is transformed, a square matrix from the right."""
    for m, n, side in ((6, 4, "right"), (4, 6, "left"), (5, 5, "right")):
        g = cases.gaussian(m, n)
        assert lowrank_core.dct_select(g, 2).side == side
    tall = lowrank_core.dct_select(cases.gaussian(4, 6), 4, side="right")
    assert tall.coeffs.shape == (4, 4) and tall.side == "right"


# ---- invariants ----------------------------------------------------------------------------------------------------


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, int, str, str, int]:
    """(g, rank, basis, side, norm_ord)."""
    basis = draw(st.sampled_from(family.BASES))
    size = st.sampled_from([1, 2, 4, 8, 16, 32, 64]) if basis == "hadamard" else st.integers(1, 70)
    m, n = draw(size), draw(size)
    g = cases.gaussian(m, n, seed=draw(st.integers(0, 99))) * 2.0 ** draw(st.integers(-20, 20))
    if draw(st.booleans()):
        g = g * torch.logspace(0, -3, n, dtype=torch.float64)
    side = draw(st.sampled_from(family.SIDES))
    rank = draw(st.integers(0, m if side == "left" else n))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    return g.to(dtype), rank, basis, side, draw(st.sampled_from([1, 2]))


def length(g: Tensor, side: str) -> int:
    return g.shape[-2] if side == "left" else g.shape[-1]


@given(problems())
def test_the_error_is_what_was_not_captured(problem: tuple[Tensor, int, str, str, int]) -> None:
    """‖g - ĝ‖² = (1 - captured) ‖g‖²; captured is at least r / n for energies; ĝ projects onto itself."""
    g, rank, basis, side, norm_ord = problem
    n = length(g, side)
    out = lowrank_core.dct_select(g, rank, basis=basis, side=side, norm_ord=norm_ord)
    near = lowrank_core.dct_project_back(out.coeffs, out.indices, n, side=side, basis=basis)
    norm, bound = tolerance.norm(g), 4 * tolerance.transform(n, g.dtype)
    lost = tolerance.norm(g.double() - near.double()) ** 2
    # Two transforms of vectors no longer than ‖g‖, and the square of a norm.
    assert abs(lost - (1 - float(out.captured)) * norm**2) <= 2 * bound * norm**2
    if norm_ord == 2:
        assert float(out.captured) >= rank / n - bound
    again = reference.spectrum(near, basis, side)
    axis = -2 if side == "left" else -1
    kept = again.index_select(axis, out.indices)
    assert tolerance.norm(kept - out.coeffs.double()) <= bound * norm
    assert math.sqrt(max(tolerance.norm(again) ** 2 - tolerance.norm(kept) ** 2, 0.0)) <= math.sqrt(bound) * norm


@given(problems())
def test_left_is_right_of_the_transpose(problem: tuple[Tensor, int, str, str, int]) -> None:
    g, rank, basis, side, norm_ord = problem
    other = "left" if side == "right" else "right"
    options: dict[str, Any] = {"basis": basis, "norm_ord": norm_ord}
    one = lowrank_core.dct_select(g, rank, side=side, **options)
    two = lowrank_core.dct_select(g.mT, rank, side=other, **options)
    assert checks.same_bits((one.indices, one.coeffs, one.captured), (two.indices, two.coeffs.mT, two.captured))


@given(problems(), st.integers(-60, 60))
def test_scaling_changes_no_choice(problem: tuple[Tensor, int, str, str, int], exponent: int) -> None:
    g, rank, basis, side, norm_ord = problem
    options: dict[str, Any] = {"basis": basis, "side": side, "norm_ord": norm_ord}
    plain = lowrank_core.dct_select(g, rank, **options)
    scaled = lowrank_core.dct_select(g * 2.0**exponent, rank, **options)
    assert torch.equal(plain.indices, scaled.indices) and checks.same_bits(plain.captured, scaled.captured)
    assert checks.same_bits(plain.coeffs * 2.0**exponent, scaled.coeffs)


@given(problems(), st.integers(0, 5))
def test_permuting_rows_changes_no_choice(problem: tuple[Tensor, int, str, str, int], seed: int) -> None:
    """And energies do not change with any rotation of the other side."""
    g, rank, basis, _, _ = problem
    if rank > g.shape[-1] or not fits(basis, g.shape[-1]):
        return
    order = torch.from_numpy(cases.generator(seed).permutation(g.shape[0]))
    for moved in (g[order], cases.orthonormal(g.shape[0], g.shape[0], seed).to(g.dtype) @ g):
        ours = lowrank_core.dct_select(moved, rank, basis=basis, side="right", norm_ord=2)
        family.assert_selection(moved, ours, rank, basis=basis, side="right")
        plain = lowrank_core.dct_select(g, rank, basis=basis, side="right", norm_ord=2)
        bound = 8 * tolerance.transform(g.shape[-1], g.dtype) + 4 * tolerance.gamma(g.shape[0] + 2, g.dtype)
        assert abs(float(ours.captured) - float(plain.captured)) <= bound


@given(st.integers(2, 9), st.integers(0, 99))
def test_no_other_set_keeps_more(n: int, seed: int) -> None:
    g = cases.gaussian(6, n, seed=seed)
    for basis in ("dct2", "dct3", "identity"):
        energy = reference.scores(reference.spectrum(g, basis, "right"), "right", 2)
        for rank in range(1, n):
            best = max(float(energy[list(chosen)].sum()) for chosen in itertools.combinations(range(n), rank))
            out = lowrank_core.dct_select(g, rank, basis=basis, side="right")
            bound = 4 * tolerance.transform(n, g.dtype)
            assert float(out.captured) >= (best / float(energy.sum())) * (1 - bound)


@pytest.mark.parametrize("basis", family.BASES)
def test_an_atom_is_found(basis: str) -> None:
    for j in (0, 1, 13, 31):
        g = torch.outer(cases.gaussian(40, 1)[:, 0], reference.atoms(basis, 32)[:, j])
        out = lowrank_core.dct_select(g, 1, basis=basis)
        assert out.indices.tolist() == [j]
        assert 1 - float(out.captured) <= 4 * tolerance.transform(32, g.dtype)


# ---- ties, zeros, scale, what is not finite ------------------------------------------------------------------------


@pytest.mark.parametrize("basis", family.BASES)
@pytest.mark.parametrize("shape", [(8, 8), (0, 8), (40, 16)])
def test_zeros(shape: tuple[int, int], basis: str) -> None:
    out = lowrank_core.dct_select(torch.zeros(shape), 3, basis=basis, side="right")
    assert out.indices.tolist() == [0, 1, 2] and float(out.captured) == 1 and not out.coeffs.any()


def test_ties_go_to_the_lower_index() -> None:
    """Columns of equal norms, in an order of rows that is another for each: exact in integers."""
    column = torch.arange(1.0, 41.0)
    g = torch.stack([column.roll(i) for i in range(24)], dim=1)
    g[:, [3, 17]] *= 2
    expected = [0, 1, 2, 3, 4, 17]
    for count in (1, 2, 3):
        with machine.threads(count):
            for norm_ord in (1, 2):
                out = lowrank_core.dct_select(g, 6, basis="identity", side="right", norm_ord=norm_ord)
                assert out.indices.tolist() == expected


def test_planted_ties_are_the_same_in_100_runs() -> None:
    g = torch.ones(64, 48)
    first = lowrank_core.dct_select(g, 20)
    for i in range(100):
        with machine.threads(1 + i % 3):
            assert checks.same_bits(tuple(first[:3]), tuple(lowrank_core.dct_select(g, 20)[:3]))


@pytest.mark.parametrize("basis", family.BASES)
@pytest.mark.parametrize(("dtype", "exponent"), [(torch.float32, 127), (torch.float64, 1020), (torch.float64, -1000)])
def test_any_finite_scale(dtype: torch.dtype, exponent: int, basis: str) -> None:
    g = (cases.gaussian(32, 64).clamp(-1, 1) * 0.5).to(dtype)
    plain = lowrank_core.dct_select(g, 5, basis=basis, side="right")
    scaled = lowrank_core.dct_select(g * 2.0**exponent, 5, basis=basis, side="right")
    assert torch.equal(plain.indices, scaled.indices) and checks.same_bits(plain.captured, scaled.captured)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("basis", family.BASES)
def test_what_is_not_finite_is_refused(basis: str, value: float) -> None:
    for dtype in family.DTYPES:
        for norm_ord in (1, 2):
            g = cases.gaussian(20, 16).to(dtype)
            g[7, 11] = value
            with pytest.raises(ValueError, match="dct_select: `g` must be finite, got NaN or infinity"):
                lowrank_core.dct_select(g, 3, basis=basis, norm_ord=norm_ord)
    q = torch.eye(16)
    q[3, 3] = value
    with pytest.raises(ValueError, match="dct_select: `basis` must be finite, got NaN or infinity"):
        lowrank_core.dct_select(torch.ones(20, 16), 3, basis=q)

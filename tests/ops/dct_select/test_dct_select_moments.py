"""Transport of moments, the way back, and error feedback in coordinates against its form in the weights' space."""

from __future__ import annotations

import itertools
import math

import dct_family as family
import lowrank_core
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lowrank_core.ops.dct_select.lists import select_feedback_list_
from lowrank_core.reference import dct_select as reference
from testing import cases, checks, layouts, tolerance
from torch import Tensor

WIDTH = 20


def chosen(draw: st.DrawFn) -> Tensor:
    picked = draw(st.sets(st.integers(0, WIDTH - 1), max_size=WIDTH))
    return torch.tensor(sorted(picked), dtype=torch.int64)


@st.composite
def transports(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(m, v, old, between, new) for the right side, v in another dtype and positive."""
    old, between, new = chosen(draw), chosen(draw), chosen(draw)
    dtypes = st.sampled_from(family.DTYPES)
    m = cases.gaussian(draw(st.integers(0, 70)), len(old), seed=draw(st.integers(0, 9)))
    return m.to(draw(dtypes)), m.square().to(draw(dtypes)), old, between, new


@given(transports())
def test_rotation_is_the_product_with_matching_ones(case: tuple[Tensor, ...]) -> None:
    m, v, old, between, new = case
    ours = lowrank_core.rotate_moments(m, v, old, new, side="right")
    exact = reference.rotate_moments(m, v, old, new, side="right")
    for x, y, z in zip(ours, exact, (m, v), strict=True):
        assert x.dtype == z.dtype and torch.equal(x.double(), y)
    assert bool((ours[1] >= 0).all())
    left = lowrank_core.rotate_moments(m.mT, v.mT, old, new, side="left")
    assert checks.same_bits((left[0].mT, left[1].mT), ours)
    same = lowrank_core.rotate_moments(m, v, old, old, side="right")
    assert checks.same_bits(same, (m, v))
    # Twice is once through what all three have in common.
    twice = lowrank_core.rotate_moments(
        *lowrank_core.rotate_moments(m, v, old, between, side="right"), between, new, side="right"
    )
    through = torch.tensor([k for k in old.tolist() if k in between.tolist()], dtype=torch.int64)
    once = lowrank_core.rotate_moments(m, v, old, through, side="right")
    assert checks.same_bits(twice, lowrank_core.rotate_moments(*once, through, new, side="right"))


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize("side", family.SIDES)
def test_rotation_of_any_strides(side: str, layout: str) -> None:
    m = cases.gaussian(6, 6, 2).float()
    m[0, 0, 0] = math.nan  # moved, never computed with
    v = m.square()
    old, new = family.indices_like(m, 0, 2, 3, 7, 8, 9), family.indices_like(m, 2, 3, 4, 9)
    make = layouts.LAYOUTS[layout]
    ours = lowrank_core.rotate_moments(make(m), make(v), old, new, side=side)
    axis = -2 if side == "left" else -1
    for x, y in zip(ours, (m, v), strict=True):
        expected = y.index_select(axis, torch.tensor([1, 2, 0, 5]))
        expected.select(axis, 2).zero_()
        assert checks.same_bits(x, expected)


def test_a_dense_product_in_half_precision_leaks_and_the_match_does_not() -> None:
    """What a bfloat16 basis does to moments: entries that belong to no common atom get up to 2^-8 of the others."""
    q = reference.dct_matrix(256).T.bfloat16()
    old, new = torch.arange(0, 32), torch.arange(16, 48)
    m = cases.gaussian(40, 32).bfloat16()
    dense = m @ (q[:, old].T @ q[:, new])
    ours, _ = lowrank_core.rotate_moments(m, m, old, new, side="right")
    assert bool(dense[:, 16:].any()) and not ours[:, 16:].any()
    assert checks.same_bits(ours[:, :16], m[:, 16:])


@pytest.mark.parametrize("side", family.SIDES)
@pytest.mark.parametrize("basis", family.BASES)
@pytest.mark.parametrize("dtype", family.DTYPES, ids=str)
def test_project_back(dtype: torch.dtype, basis: str, side: str) -> None:
    """Also ranks 0 and n, and a rank that equals the other side, where no shape tells the side."""
    for n, other in ((1, 1), (16, 35), (64, 9), (8, 8)) + (((67, 20), (45, 33)) if basis != "hadamard" else ()):
        for rank in {0, 1, n // 2, n}:
            indices = torch.from_numpy(np.sort(cases.generator(n).permutation(n)[:rank]))
            shape = (rank, other) if side == "left" else (other, rank)
            coeffs = torch.from_numpy(cases.generator(n, rank).standard_normal(shape)).to(dtype)
            out = lowrank_core.dct_project_back(coeffs, indices, n, side=side, basis=basis)
            exact = reference.dct_project_back(coeffs, indices, n, side=side, basis=basis)
            assert out.dtype == dtype
            axis = -2 if side == "left" else -1
            size = coeffs.double().norm(dim=axis)
            bound = (tolerance.transform(n, dtype) + tolerance.UNIT[dtype]) * size
            bound += n * torch.finfo(dtype).smallest_normal
            assert bool(((out.double() - exact).norm(dim=axis) <= 2 * bound).all())


# ---- error feedback ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", family.SIDES)
@pytest.mark.parametrize("basis", [*family.BASES, "custom"])
@pytest.mark.parametrize("dtype", family.DTYPES, ids=str)
def test_feedback_against_the_reference(dtype: torch.dtype, basis: str, side: str) -> None:
    for m, n in ((64, 64), (32, 128), (70, 67)):
        length = m if side == "left" else n
        if basis == "hadamard" and length & (length - 1):
            continue
        atoms = cases.orthonormal(length, length).float() if basis == "custom" else basis
        g = cases.gaussian(m, n).to(dtype)
        residual = 0.5 * cases.gaussian(m, n, seed=1).float()
        s = (reference.spectrum(g, atoms, side) + residual.double()).clone()
        out = lowrank_core.dct_select_feedback_(residual, g, 9, keep=0.25, basis=atoms, side=side)
        axis = -2 if side == "left" else -1
        norm = tolerance.norm(g) + tolerance.norm(s)
        accumulated = tolerance.transform(length, dtype) + tolerance.gamma(length + 2, torch.float32)
        bound = accumulated * norm + tolerance.UNIT[torch.float32] * tolerance.norm(s)
        exact = s.index_select(axis, out.indices)
        assert tolerance.norm(out.coeffs.double() - exact) <= bound + tolerance.UNIT[dtype] * tolerance.norm(exact)
        s.index_copy_(axis, out.indices, 0.25 * exact)
        assert tolerance.norm(residual.double() - s) <= bound


@pytest.mark.parametrize("basis", family.BASES)
def test_feedback_in_coordinates_is_feedback_in_weights(basis: str) -> None:
    """20 steps: the same choices, the same projected values; and coordinates + rest = what came in."""
    state = torch.zeros(64, 32, dtype=torch.float64)
    weights = torch.zeros_like(state)
    q = reference.atoms(basis, 32)
    bound = 20 * 4 * tolerance.transform(32, torch.float64)
    for step in range(20):
        g = cases.gaussian(64, 32, seed=step)
        before = state.clone()
        out = lowrank_core.dct_select_feedback_(state, g, 8, basis=basis, side="right")
        total = g + weights
        expected = lowrank_core.dct_select(total, 8, basis=basis, side="right")
        assert torch.equal(out.indices, expected.indices)
        assert tolerance.norm(out.coeffs - expected.coeffs) <= bound * tolerance.norm(total)
        near = lowrank_core.dct_project_back(out.coeffs, out.indices, 32, side="right", basis=basis)
        weights = total - near
        assert tolerance.norm(state @ q.T - weights) <= bound * tolerance.norm(total)
        assert tolerance.norm(state @ q.T + near - (g + before @ q.T)) <= bound * tolerance.norm(total)


def test_keeping_a_share_of_the_identity_is_momentum_on_chosen_rows() -> None:
    """With unit vectors as atoms: rows of the sum, largest first, multiplied by the decay where they were used."""
    momentum, mu = torch.zeros(12, 30, dtype=torch.float64), 0.95
    state = momentum.clone()
    for step in range(10):
        g = cases.gaussian(12, 30, seed=step)
        out = lowrank_core.dct_select_feedback_(state, g, 3, keep=mu, basis="identity", side="left")
        momentum = momentum + g
        rows = momentum.square().sum(1).topk(3).indices.sort().values
        assert torch.equal(out.indices, rows) and checks.same_bits(out.coeffs, momentum[rows])
        momentum[rows] *= mu
        assert checks.same_bits(state, momentum)


@pytest.mark.parametrize("norm_ord", [1, 2])
@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (70, 33), (300, 301), (5000, 3)], ids=str)
def test_the_layout_changes_no_bit_of_feedback_by_unit_vectors(shape: tuple[int, int], norm_ord: int) -> None:
    """Lines along memory are added up as they lie there; others go through the lanes of a transform."""
    found = []
    for of_g, of_residual in itertools.product(layouts.LAYOUTS.values(), repeat=2):
        g, residual = of_g(cases.gaussian(*shape).float()), of_residual(cases.gaussian(*shape, seed=1).float())
        rank = (min(shape) + 1) // 2
        out = lowrank_core.dct_select_feedback_(
            residual, g, rank, keep=0.5, basis="identity", side="right", norm_ord=norm_ord
        )
        found.append([residual.contiguous(), *out[:3]])
    assert all(all(map(checks.same_bits, some, found[0])) for some in found)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_list_with_a_residual_that_is_not_finite_is_refused(value: float) -> None:
    residuals, matrices = [torch.ones(6, 5), torch.ones(6, 5)], [torch.ones(6, 5), torch.ones(6, 5)]
    residuals[1][2, 3] = value
    with pytest.raises(ValueError, match=r"dct_select_feedback_: `residual\[1\]` must be finite"):
        select_feedback_list_(residuals, matrices, [2, 2], ["left", "right"], keep=0.5, basis="identity", norm_ord=1)


@pytest.mark.parametrize("where", ["g", "residual", "basis"])
def test_a_refused_feedback_changes_nothing(where: str) -> None:
    arrays = {"g": torch.ones(6, 5), "residual": torch.ones(6, 5), "basis": torch.eye(5)}
    arrays[where][2, 3] = math.nan
    before = arrays["residual"].clone()
    with pytest.raises(ValueError, match=f"dct_select_feedback_: `{where}` must be finite"):
        lowrank_core.dct_select_feedback_(arrays["residual"], arrays["g"], 2, basis=arrays["basis"])
    assert checks.same_bits(before, arrays["residual"])


# ---- published anchors ---------------------------------------------------------------------------------------------


def _matrix(name: str, n: int = 1024) -> Tensor:
    g = cases.gaussian(n, n)
    if name == "outlier columns":
        g[:, ::128] *= 10
    if name == "random walk":
        g = g.cumsum(1)
    if name == "rank 32 and noise":
        g = cases.gaussian(n, 32, seed=1) @ cases.gaussian(32, n, seed=2) + 0.1 * g
    return g.float()


# Shares of the energy that 128 of 1024 atoms keep, measured with dense matrices of the same kinds; for unit vectors the
# expected ones where they are known: 920 / 1816 with eight outliers, 1 - (7/8)² at the end of a walk.
ANCHORS = {
    "gaussian": {"identity": 0.134, "dct2": 0.135, "dct3": 0.134, "hadamard": 0.134},
    "rank 32 and noise": {"identity": 0.183, "dct2": 0.183, "dct3": 0.183, "hadamard": 0.181},
    "outlier columns": {"identity": 0.507, "dct2": 0.149, "dct3": 0.149, "hadamard": 0.134},
    "random walk": {"identity": 0.234, "dct2": 0.995, "dct3": 0.993, "hadamard": 0.992},
}


@pytest.mark.parametrize("matrix", ANCHORS)
def test_what_each_basis_captures(matrix: str) -> None:
    g = _matrix(matrix)
    draw = 0.02  # the anchors' matrices are other draws of the same kind
    for basis, share in ANCHORS[matrix].items():
        out = lowrank_core.dct_select(g, 128, basis=basis, side="right")
        assert abs(float(out.captured) - share) <= draw, (basis, float(out.captured))


def test_magnitudes_can_choose_badly_and_energies_cannot() -> None:
    """Many small coordinates beside a few large ones: the 1-norm takes the small ones."""
    g = torch.zeros(100, 40)
    g[:, :20] = 1.0
    g[0, 20:] = 99.0
    by_energy = lowrank_core.dct_select(g, 20, basis="identity", side="right")
    by_size = lowrank_core.dct_select(g, 20, basis="identity", side="right", norm_ord=1)
    assert by_energy.indices.tolist() == list(range(20, 40)) and by_size.indices.tolist() == list(range(20))
    assert float(by_size.captured) < 0.02 and float(by_energy.captured) > 0.98

"""Geometry and projectors: sides, shapes, bases and the way in and out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lowrank_core.memory.geometry import PROJ_TYPES, Geometry, Side, place
from lowrank_core.optim import GaLoreAdamW
from lowrank_core.optim.parts.projectors.orthonormal import ExactSVD, RandomizedSVD
from lowrank_core.optim.parts.subspaces.dense import Dense
from optim_cases import plain_on_purpose, query
from torch import Tensor

U32, U64, UBF16 = 2.0**-24, 2.0**-53, 2.0**-8
SIDES = {  # proj_type -> (m > n, m = n, m < n)
    "std": (Side.RIGHT, Side.RIGHT, Side.LEFT),
    "reverse_std": (Side.LEFT, Side.LEFT, Side.RIGHT),
    "left": (Side.LEFT,) * 3,
    "right": (Side.RIGHT,) * 3,
    "full": (Side.BOTH,) * 3,
}
PROJECTED = [side for side in Side if side != Side.WHOLE]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def decaying(m: int, n: int, seed: int = 0) -> Tensor:
    """[m, n] float64 with singular values 1, 1/2, 1/4, ..."""
    u, _, vh = torch.linalg.svd(draw(m, n, seed=seed), full_matrices=False)
    return u @ torch.diag(0.5 ** torch.arange(min(m, n), dtype=torch.float64)) @ vh


@pytest.mark.parametrize("proj_type", PROJ_TYPES)
def test_sides_are_galores(proj_type: str) -> None:
    shapes = ((9, 5), (7, 7), (5, 9))
    assert tuple(place(shape, 3, proj_type)[0].side for shape in shapes) == SIDES[proj_type]


@pytest.mark.parametrize(
    ("shape", "rank", "reason"),
    [
        ((8, 9), None, "its group has no rank: give it one"),
        ((8,), None, "1-D"),
        ((), 2, "0-D"),
        ((8,), 2, "1-D"),
        ((0, 9), 2, "empty"),
        ((4, 3, 0), 2, "empty"),
        ((8, 9), 8, "rank 8 >= min(m, n) = 8: lower `rank`, or force_projection=True"),
        ((1, 9), 1, "1 x 9: a vector"),
        ((9, 1, 1), None, "9 x 1: a vector"),
        ((4, 3, 3), 5, "rank 5 >= min(m, n) = 4: lower `rank`, or force_projection=True"),
    ],
)
@plain_on_purpose
def test_what_cannot_be_projected_says_why(shape: tuple[int, ...], rank: int | None, reason: str) -> None:
    assert place(shape, rank) == (None, reason)
    row = GaLoreAdamW([torch.nn.Parameter(torch.zeros(shape))], rank=rank).plan()[0]
    assert (row.projected, row.side, row.rank, row.reason) == (False, None, None, reason)


def test_remarks_of_the_plan() -> None:
    assert place((4, 3, 3), 2) == (Geometry(4, 9, Side.LEFT, 2), "seen as 4 x 9")
    remark = "rank 7 lowered to min(m, n), saves no memory at this rank"
    assert place((4, 9), 7, force=True) == (Geometry(4, 9, Side.LEFT, 4), remark)


@pytest.mark.parametrize(
    ("shape", "rank", "proj_type", "more"),
    [
        ((4, 4), 2, "std", False),  # 4 * 2 + 2 * 4 * 2 = 24 of 32
        ((4, 4), 3, "std", True),  # 36 of 32
        ((6, 6), 4, "std", False),  # 72 of 72: as much, not more
        ((4, 40), 3, "std", False),
        ((4, 40), 3, "reverse_std", False),  # 40 * 3 + 2 * 4 * 3 = 144 of 320
        ((4, 40), 3, "full", False),
        ((4, 5), 3, "reverse_std", False),  # 5 * 3 + 2 * 4 * 3 = 39 of 40
        ((4, 5), 3, "std", True),  # 4 * 3 + 2 * 5 * 3 = 42 of 40
        ((4, 4), 3, "full", True),  # 2 * 4 * 3 + 2 * 9 = 42 of 32
    ],
)
def test_a_rank_that_saves_no_memory_is_said(shape: tuple[int, int], rank: int, proj_type: str, more: bool) -> None:
    assert (place(shape, rank, proj_type)[1] == "saves no memory at this rank") is more


@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    rank=st.integers(1, 12),
    proj_type=st.sampled_from(PROJ_TYPES),
    force=st.booleans(),
    projector=st.sampled_from(["rsvd", "svd"]),
)
@plain_on_purpose
def test_every_shape_rank_and_side_steps(  # trap T6
    shape: list[int], rank: int, proj_type: str, force: bool, projector: str
) -> None:
    weight = torch.nn.Parameter(draw(*shape))
    keys = {"rank": rank, "proj_type": proj_type, "force_projection": force, "update_proj_gap": 2}
    optimizer = GaLoreAdamW([weight], projector=projector, oversample=2, scale=1.0, **keys)
    geometry, _ = place(tuple(shape), rank, proj_type, force)
    for seed in range(1, 4):
        before = weight.detach().clone()
        weight.grad = draw(*shape, seed=seed)
        optimizer.step()
        assert not torch.equal(before, weight)
    state = optimizer.state[weight]
    assert ("proj.rank" in state) == (geometry is not None)
    if geometry is not None:
        assert (state["proj.side"], state["proj.rank"], state["proj.refreshes"]) == (
            geometry.side,
            geometry.rank,
            2,
        )
        assert state["exp_avg"].shape == geometry.low_shape
        shapes = geometry.basis_shapes
        for which, shape in shapes.items():
            basis = state["proj.basis" if len(shapes) == 1 else f"proj.basis_{which}"]
            assert basis.shape == shape and basis.is_contiguous()


@pytest.mark.parametrize("projector", [ExactSVD(), RandomizedSVD()], ids=["svd", "rsvd"])
@pytest.mark.parametrize("side", PROJECTED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("m", "n"), [(40, 24), (24, 40)])
def test_bases_are_orthonormal_and_leading(projector, side: Side, dtype: torch.dtype, m: int, n: int) -> None:  # T10
    grad, rank = decaying(m, n).to(dtype), 6
    found = projector.find([query(grad, Geometry(m, n, side, rank), None, 3)])[0].subspace.bases
    assert list(found) == {Side.LEFT: ["left"], Side.RIGHT: ["right"], Side.BOTH: ["left", "right"]}[side]
    work, u = (torch.float64, U64) if dtype == torch.float64 else (torch.float32, U32)
    left, values, right = torch.linalg.svd(grad.double(), full_matrices=False)
    for which, basis in found.items():
        assert basis.dtype == work
        gram = basis.mT.double() @ basis.double()
        assert (gram - torch.eye(rank)).abs().max() <= 20 * max(m, n) * u  # Householder's a-priori form, c = 20
        exact = left[:, :rank] if which == "left" else right[:rank].mT
        # Rounding turns the space by at most itself over the gap of the values (Wedin). The sketch of 16 columns and
        # 2 power iterations adds (s17 / s6)^5, times 10 of the mean's constant (Halko et al. 2011, theorem 10.6).
        rounding = 20 * max(m, n) * u / (values[rank - 1] - values[rank])
        sketch = 10 * (1 + (6 / 9) ** 0.5 + 2.72 * 4 / 10 * 18**0.5) * (values[16] / values[5]) ** 5
        missed = exact - basis.double() @ (basis.mT.double() @ exact)
        assert torch.linalg.matrix_norm(missed, 2) <= rounding + sketch
        first = basis.gather(0, basis.abs().argmax(0, keepdim=True))
        assert side == Side.BOTH or bool((first > 0).all())  # the sign convention of a first basis


@pytest.mark.parametrize("projector", [ExactSVD(), RandomizedSVD()], ids=["svd", "rsvd"])
@pytest.mark.parametrize("side", PROJECTED)
def test_signs_follow_the_basis_held(projector, side: Side) -> None:
    geometry = Geometry(30, 20, side, 5)
    held = projector.find([query(decaying(30, 20), geometry, None, 0)])[0].subspace.bases
    flipped = {which: -basis for which, basis in held.items()}
    moved = decaying(30, 20) + 0.05 * decaying(30, 20, seed=1)
    for before in (held, flipped):
        after = projector.find([query(moved, geometry, Dense(before), 1)])[0].subspace.bases
        for which, basis in after.items():
            assert bool(((basis * before[which]).sum(0) >= 0).all())


def test_a_full_projection_is_diagonal() -> None:
    grad = decaying(12, 9)
    for projector in (ExactSVD(), RandomizedSVD()):  # a sketch of 4 + 10 columns spans all 9 here
        low = projector.find([query(grad, Geometry(12, 9, Side.BOTH, 4), None, 0)])[0].subspace.down(grad)
        expected = torch.diag(0.5 ** torch.arange(4, dtype=torch.float64))
        assert (low - expected).abs().max() <= 20 * 12 * U64


@pytest.mark.parametrize("side", PROJECTED)
def test_down_and_up_are_an_orthogonal_projection(side: Side) -> None:
    grad = draw(11, 8)
    subspace = ExactSVD().find([query(grad, Geometry(11, 8, side, 3), None, 0)])[0].subspace
    low = subspace.down(grad)
    back = subspace.up(low)
    assert torch.allclose(subspace.down(back), low, rtol=0, atol=100 * U64 * grad.norm())
    assert (back - grad).norm() <= grad.norm()
    assert subspace.rank == 3


@pytest.mark.parametrize("layout", ["transposed", "sliced", "channels_last"])
def test_strided_weights_and_gradients(layout: str) -> None:
    shape = (6, 5, 4, 4) if layout == "channels_last" else (12, 10)
    plain = torch.nn.Parameter(draw(*shape))
    if layout == "transposed":
        strided = torch.nn.Parameter(draw(*shape).mT.contiguous().mT)
    elif layout == "sliced":
        surroundings = torch.full((14, 12), torch.nan, dtype=torch.float64)
        surroundings[1:-1, 1:-1] = draw(*shape)
        strided = torch.nn.Parameter(surroundings[1:-1, 1:-1])
    else:
        strided = torch.nn.Parameter(draw(*shape).to(memory_format=torch.channels_last))
    pair = [GaLoreAdamW([p], rank=3, update_proj_gap=2, scale=1.0) for p in (plain, strided)]
    for seed in range(1, 5):
        plain.grad, strided.grad = draw(*shape, seed=seed), torch.empty_like(strided)
        strided.grad.copy_(plain.grad)
        for optimizer in pair:
            optimizer.step()
    # The same numbers in another order of summation: n u |G| per product, a few of them a step, divided by |G|.
    assert torch.allclose(plain, strided, rtol=0, atol=4 * 3 * 80 * U64 * 1e3)
    assert pair[1].skipped_steps == 0


@pytest.mark.parametrize("bad", [{"oversample": -1}, {"niter": 1.5}, {"warm_niter": 0}])
def test_projectors_refuse(bad: dict) -> None:
    with pytest.raises(ValueError, match=f"RandomizedSVD: `{next(iter(bad))}` must be"):
        RandomizedSVD(**bad)


def test_a_bfloat16_basis_stays_nearly_orthonormal() -> None:
    weight = torch.nn.Parameter(draw(64, 48).bfloat16())
    optimizer = GaLoreAdamW([weight], rank=16)
    weight.grad = draw(64, 48, seed=1).bfloat16()
    optimizer.step()
    basis = optimizer.state[weight]["proj.basis"]
    assert basis.dtype == torch.bfloat16
    gram = basis.double().mT @ basis.double()
    assert (gram - torch.eye(16)).abs().max() <= 2 * UBF16 + UBF16**2 + 20 * 64 * U32

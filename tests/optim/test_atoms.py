"""Subspaces of atoms: coordinates, choice, way back and turn, by kernels and by torch operations alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lowrank_core.memory.geometry import Geometry, Side
from lowrank_core.optim.devices import without_kernels
from lowrank_core.optim.parts import atoms
from lowrank_core.optim.parts.projectors.selection import EachStepSelection, Selection
from lowrank_core.optim.parts.rules.column_adam import ColumnAdam
from lowrank_core.optim.parts.subspaces.indices import Indices
from lowrank_core.optim.parts.subspaces.selection import All
from lowrank_core.optim.slots import Slot
from optim_cases import draw, query, same
from plain_bases import atoms as printed
from plain_bases import best
from testing import tolerance
from torch import nn

U64 = tolerance.UNIT[torch.float64]
SIDES = {"left": (16, 11), "right": (11, 16)}
every_basis = pytest.mark.parametrize("basis", atoms.BASES)
every_side = pytest.mark.parametrize("side", SIDES)


def indices(*numbers: int, side: str = "right", basis: str = "dct2", **keys: Any) -> Indices:
    return Indices(torch.tensor(numbers), 16, side, basis, **keys)


@every_basis
@every_side
@pytest.mark.parametrize("kernels", [True, False])
def test_coordinates_choice_and_way_back(basis: str, side: str, kernels: bool) -> None:
    matrix, q = draw(*SIDES[side]).double(), torch.from_numpy(printed(basis, 16))
    expected = q.mT @ matrix if side == "left" else matrix @ q
    rounding = 16 * tolerance.gamma(16, torch.float64) * float(matrix.norm())

    def check() -> None:
        spectrum = atoms.coordinates(matrix, basis, side)
        assert (spectrum - expected).abs().max() <= rounding
        for norm_ord in (1, 2):
            chosen = atoms.choose(matrix, 5, basis=basis, side=side, norm_ord=norm_ord)
            lines = expected.mT if side == "left" else expected
            assert chosen.indices.tolist() == best(lines.numpy(), 5, norm_ord)
            low = expected.index_select(0 if side == "left" else 1, chosen.indices)
            assert (chosen.low - low).abs().max() <= rounding
            assert abs(chosen.captured - low.square().sum() / matrix.square().sum()) <= 64 * U64
            kept = q[:, chosen.indices]
            inside = kept @ kept.mT @ matrix if side == "left" else matrix @ kept @ kept.mT
            back = atoms.lift(chosen.low, chosen.indices, 16, basis=basis, side=side)
            assert (back - inside).abs().max() <= 2 * rounding

    if kernels:
        return check()
    with without_kernels():
        check()


@every_basis
@pytest.mark.parametrize("length", [1, 2, 4, 16, 64])
def test_columns_are_orthonormal(basis: str, length: int) -> None:
    q = atoms.columns(basis, length, torch.float64, torch.device("cpu"))
    assert (q.mT @ q - torch.eye(length, dtype=torch.float64)).abs().max() <= 4 * length * U64
    assert np.abs(q.numpy() - printed(basis, length)).max() <= 16 * length * U64  # whose angles are not reduced


def test_angles_are_reduced_before_they_are_rounded() -> None:
    """Entries of a long basis are right to a rounding: k (2i + 1) would not fit the digits of its cosine's argument."""
    q = atoms.columns("dct2", 3001, torch.float64, torch.device("cpu"))
    k, i = 2999, 2998
    phase = k * (2 * i + 1) % (4 * 3001)
    assert abs(q[i, k] - (2 / 3001) ** 0.5 * np.cos(np.pi * phase / (2 * 3001))) <= 8 * U64 * (2 / 3001) ** 0.5


@pytest.mark.parametrize("kernels", [True, False])
@every_side
def test_ties_go_to_the_lower_number_and_zeros_to_the_first(side: str, kernels: bool) -> None:
    options: dict[str, Any] = {"basis": "identity", "side": side, "norm_ord": 2}
    tied = torch.zeros(SIDES[side])
    tied.select(0 if side == "left" else 1, 9).fill_(2.0)
    for k in (3, 4, 12):
        tied.select(0 if side == "left" else 1, k).fill_(1.0)

    def check() -> None:
        assert atoms.choose(tied, 3, **options).indices.tolist() == [3, 4, 9]
        zero = atoms.choose(torch.zeros(SIDES[side]), 3, **options)
        assert zero.indices.tolist() == [0, 1, 2] and zero.captured == 1 and not zero.low.any()

    if kernels:
        return check()
    with without_kernels():
        check()


@every_side
def test_down_of_a_matrix_and_of_its_spectrum(side: str) -> None:
    matrix = draw(*SIDES[side]).double()
    one, other = (indices(1, 4, 9, side=side, spectral=spectral) for spectral in (False, True))
    low = one.down(matrix)
    assert low.shape == ((3, 11) if side == "left" else (11, 3)) and one.rank == 3
    assert same(other.down(atoms.coordinates(matrix, "dct2", side)), low)
    assert (one.down(one.up(low)) - low).abs().max() <= 64 * U64 * low.norm()


@every_side
@pytest.mark.parametrize("kernels", [True, False])
def test_a_turn_copies_what_matches(side: str, kernels: bool) -> None:
    """Exactly what the product of the two bases gives, without its rounding; of both moments, and of counts."""
    old, new = indices(0, 2, 3, 8, 15, side=side), indices(1, 2, 8, 9, 15, side=side)
    q = torch.from_numpy(printed("dct2", 16))
    product = (q[:, new.indices].mT @ q[:, old.indices]).round()
    low = draw(*((5, 11) if side == "left" else (11, 5)))
    expected = (product @ low.double() if side == "left" else low.double() @ product.mT).float()

    def check() -> None:
        turn = new.turn_from(old)
        assert torch.equal(turn.linear(low), expected) and torch.equal(turn.squared(low), expected)
        assert all(torch.equal(found, expected) for found in turn.both(low, low))
        assert turn.overlap() == 3 / 5
        counts = torch.tensor([[1, 2, 3, 4, 5]], dtype=torch.int32)
        counts = counts.mT.contiguous() if side == "left" else counts
        assert turn.linear(counts).flatten().tolist() == [0, 2, 4, 0, 5]
        still = old.turn_from(old)
        assert torch.equal(still.linear(low), low) and still.overlap() == 1
        none = indices(1, 4, 5, 6, 7, side=side).turn_from(old)
        assert not none.linear(low).any() and none.overlap() == 0

    if kernels:
        return check()
    with without_kernels():
        check()


@pytest.mark.parametrize(
    "other",
    [
        indices(1, side="left"),
        indices(1, basis="dct3"),
        Indices(torch.tensor([1]), 9, "right", "dct2"),
        All(Geometry(9, 9, Side.WHOLE, 3)),
    ],
)
def test_there_is_no_turn_from_another_basis(other: Any) -> None:
    with pytest.raises(TypeError, match=r"^turn_from: `old` must be a subspace of atoms of the same basis"):
        indices(1).turn_from(other)


@every_side
@pytest.mark.parametrize("keep", [0.0, 0.75])
def test_what_is_held_is_damped(side: str, keep: float) -> None:
    spectrum = draw(*SIDES[side])
    expected = spectrum.clone()
    (expected if side == "left" else expected.mT)[[1, 4]] *= keep
    indices(1, 4, side=side).damp_(spectrum, keep)
    assert torch.equal(spectrum, expected)


@every_side
def test_a_basis_for_a_kernel(side: str) -> None:
    """The atoms themselves, where something asks for a dense basis."""
    where = Geometry(*SIDES[side], Side.LEFT if side == "left" else Side.RIGHT, 3)
    slot = Slot(*[nn.Parameter(draw(*SIDES[side]))] * 2, 0, "w", where, "")
    projector = Selection()
    state: dict[str, Any] = {
        "proj.rank": 3,
        "proj.dct2": torch.zeros(3, dtype=torch.int64),
        "proj.captured": torch.ones(()),
    }
    (found,) = projector.find([query(slot.weight.detach(), where, None, 0)])
    projector.hold(slot, state, found.subspace)
    basis = projector.stored_basis(slot, state)
    q = torch.from_numpy(printed("dct2", 16))[:, state["proj.dct2"]]
    assert basis.shape == (16, 3) and (basis - q).abs().max() <= 16 * tolerance.UNIT[torch.float32]
    assert 3 / 16 <= state["proj.captured"] < 1


def test_counts_have_the_shape_of_their_side() -> None:
    rule = ColumnAdam()
    for side, shape in ((Side.LEFT, (9, 1)), (Side.RIGHT, (1, 9))):
        assert rule.layout_in(Geometry(9, 9, side, 9))["counts"].shape == shape


@pytest.mark.parametrize("kind", [Selection, EachStepSelection])
def test_what_a_selection_says_of_itself(kind: type[Selection]) -> None:
    assert kind().each_step == (kind is EachStepSelection) and not kind().may_fail and not kind().ranks_vary

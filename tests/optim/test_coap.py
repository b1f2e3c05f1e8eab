"""COAP: Eq. 5 against autograd, 50 steps against the formulas in NumPy, and the identities that name it."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch
from lowrank_core.memory import formula_state_bytes
from lowrank_core.optim import CoapAdamW, GaLoreAdamW, estimate_state_bytes
from lowrank_core.optim.parts.projectors.correlated import slope_of
from numpy import ndarray
from optim_cases import draw, same
from plain_steps import SIDES, UNIT, UNIT32, Adam, gradients, leading, path
from torch import Tensor, nn

__all__ = ["path"]  # a fixture
with_both_paths = pytest.mark.usefixtures("path")
STEPS, GAP, FACTOR, RANK = 50, 4, 3, 3
LR, BETAS, EPS, DECAY, SCALE = 0.05, (0.8, 0.95), 1e-4, 0.02, 0.4


def loss(grad: Tensor, basis: Tensor, moment: Tensor, right: bool) -> Tensor:
    """L of Eq. 5 as it is printed: P is [n, r] on the right, [m, r] on the left; cosines along rows on both sides."""
    inside, lifted = (
        (grad @ basis @ basis.mT, moment @ basis.mT) if right else (basis @ basis.mT @ grad, basis @ moment)
    )
    cosines = torch.nn.functional.cosine_similarity(lifted, grad, dim=1)
    return (inside - grad).square().mean() * (1 - cosines.mean())


def slope(grad: Tensor, basis: Tensor, moment: Tensor, right: bool) -> Tensor:
    """Its gradient by autograd."""
    leaf = basis.clone().requires_grad_()
    loss(grad, leaf, moment, right).backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("orthonormal", [True, False])
@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("shape", [(14, 9), (9, 14)])
def test_g12_the_closed_form_is_the_gradient(shape: tuple[int, int], right: bool, orthonormal: bool) -> None:
    grad = 3 * draw(*shape).double()
    basis = draw(shape[1] if right else shape[0], 4, seed=1).double()
    if orthonormal:
        basis = torch.linalg.qr(basis)[0]
    moment = (draw(shape[0], 4, seed=2) if right else draw(4, shape[1], seed=2)).double()
    expected = slope(grad, basis, moment, right)
    a, m = (grad, moment) if right else (grad.mT, moment.mT)
    found, size = slope_of(a, basis, m, by_row=right)
    assert abs(size - grad.square().mean().sqrt()) <= 20 * UNIT * size
    # Sums of at most 14 products, of entries up to about 10, several deep.
    assert (found * size.square() - expected).norm() <= 1e4 * UNIT * expected.norm()
    basis, numeric, step = basis.contiguous(), torch.zeros(basis.shape).double(), 1e-4
    for i in range(basis.numel()):
        ends = []
        for sign in (1, -1):
            moved = basis.clone()
            moved.view(-1)[i] += sign * step
            ends.append(loss(grad, moved, moment, right))
        numeric.view(-1)[i] = (ends[0] - ends[1]) / (2 * step)
    assert (found * size.square() - numeric).abs().max() < 1e-6 * numeric.abs().max()


@pytest.mark.parametrize("right", [True, False])
def test_rows_of_zeros(right: bool) -> None:
    """Of the gradient, of the moment and of both: a cosine that is not there counts as 0, as torch's does."""
    grad, basis = draw(9, 14).double(), torch.linalg.qr(draw(14 if right else 9, 4, seed=1).double())[0]
    moment = (draw(9, 4, seed=2) if right else draw(4, 14, seed=2)).double()
    grad[2:4] = 0
    if right:
        moment[3:5] = 0
    a, m = (grad, moment) if right else (grad.mT, moment.mT)
    found, size = slope_of(a, basis, m, by_row=right)
    expected = slope(grad, basis, moment, right)
    assert (found * size.square() - expected).norm() <= 1e4 * UNIT * expected.norm()
    nothing, _ = slope_of(a, basis, torch.zeros_like(m), by_row=right)
    assert bool(torch.isfinite(nothing).all())


class Plain:
    """One weight, in float64 and in its own orientation, with exact searches."""

    def __init__(self, weight: ndarray, right: bool, normalized: bool) -> None:
        self.weight, self.right, self.normalized, self.adam = weight, right, normalized, Adam(BETAS, EPS)
        self.basis: Any = None
        self.turned = self.error = self.moved = 0.0
        self.searches: list[int] = []

    def look(self, grad: ndarray) -> None:
        number = self.adam.count // GAP
        if number % FACTOR == 0:
            self.searches.append(self.adam.count)
            self.basis, turned = leading(grad.T if self.right else grad, RANK, self.basis)
            self.turned = max(self.turned, turned)
            return
        before = self.basis
        if self.normalized:
            grad = grad / sqrt(np.mean(grad**2))
        by = slope(*(torch.from_numpy(np.ascontiguousarray(x)) for x in (grad, before, self.adam.mean)), self.right)
        steep = by.numpy()
        if self.normalized:
            step = 0.05 * np.linalg.norm(before) / np.linalg.norm(steep)
            found = np.linalg.qr(before - step * steep)[0]
            self.basis = found * np.where((found * before).sum(0) < 0, -1.0, 1.0)
        else:
            self.basis = before - 0.1 * steep / max(1.0, np.linalg.norm(steep))
        self.moved = max(self.moved, float(np.linalg.norm(self.basis - before)))
        self.turned *= 1.5  # what its derivative makes of an error of the basis before, and its own rounding
        self.turned += 1e4 * UNIT

    def step(self, grad: ndarray) -> None:
        if self.adam.count % GAP == 0:
            self.look(grad)
        low = grad @ self.basis if self.right else self.basis.T @ grad
        inside = self.adam.direction(low)
        lifted = inside @ self.basis.T if self.right else self.basis @ inside
        self.weight = (1 - LR * DECAY) * self.weight - LR * SCALE * lifted
        off = 4 * (self.turned + grad.size * UNIT) * np.abs(grad).max() * sqrt(max(grad.shape))
        turn = float(np.linalg.norm(self.adam.error(inside, off)) + self.turned * np.linalg.norm(inside))
        self.error += LR * SCALE * turn + 4 * UNIT * float(np.linalg.norm(self.weight))


@with_both_paths
@pytest.mark.parametrize("eq5", ["reference", "normalized"])
@pytest.mark.parametrize(("shape", "proj_type"), SIDES)
def test_the_formulas(eq5: str, shape: tuple[int, int], proj_type: str) -> None:
    """Searches are exact where they sketch all of the shorter side: before steps 0, 12, 24, ...; Eq. 5 at 4 and 8."""
    start = np.random.default_rng(1).standard_normal(shape)
    plain = Plain(start.copy(), SIDES[shape, proj_type] == "R", eq5 == "normalized")
    weight = nn.Parameter(torch.from_numpy(start.copy()))
    keys: dict[str, Any] = {"rank": RANK, "update_proj_gap": GAP, "reproject_factor": FACTOR, "scale": SCALE}
    optimizer = CoapAdamW([weight], LR, BETAS, EPS, DECAY, proj_type=proj_type, eq5=eq5, **keys)
    for number, grad in enumerate(gradients(shape, STEPS)):
        weight.grad, before = torch.from_numpy(grad), plain.weight
        plain.step(grad)
        optimizer.step()
        assert np.linalg.norm(weight.detach().numpy() - plain.weight) <= plain.error, f"step {number}"
        assert plain.error < 2.0**-14 * np.linalg.norm(plain.weight - before)
    assert plain.searches == [0, 12, 24, 36, 48] and plain.moved > 1e3 * plain.turned  # which Eq. 5 shows in
    assert optimizer.projections()[0].refreshes == 13


def after(
    optimizer: type[Any], size: float = 1.0, steps: int = 9, dtype: torch.dtype = torch.float32, **keys: Any
) -> tuple[Tensor, dict[str, Any]]:
    """A weight that gradients of that size have stepped, and its state."""
    weight = nn.Parameter(draw(40, 24).to(dtype))
    made = optimizer([weight], 0.01, **{"rank": 6, "update_proj_gap": 2, "scale": 0.5, **keys})
    for step in range(steps):
        weight.grad = size * draw(40, 24, seed=step + 1).to(dtype)
        made.step()
    return weight.detach(), made.state[weight]


@pytest.mark.parametrize("moments", ["keep", "rotate"])
def test_g12_where_every_change_is_a_search_it_is_galore(moments: str) -> None:
    assert same(after(CoapAdamW, reproject_factor=1, moments=moments), after(GaLoreAdamW, moments=moments))
    assert not same(after(CoapAdamW, reproject_factor=2)[0], after(GaLoreAdamW)[0])


def orthonormality(state: dict[str, Any]) -> float:
    basis = state["proj.basis"].double()
    return float((basis.mT @ basis - torch.eye(basis.shape[1], dtype=torch.float64)).abs().max())


def test_the_published_step_is_quadratic_in_the_gradient_up_to_the_clip() -> None:
    """Gradients of usual size move nothing that float32 can hold; of large ones the step is 0.1 long."""
    for dtype, size in ((torch.float32, 1e-5), (torch.float64, 2.0**-40)):
        _, searched = after(CoapAdamW, size=size, steps=1, dtype=dtype, reproject_factor=9)
        _, small = after(CoapAdamW, size=size, steps=9, dtype=dtype, reproject_factor=9)
        assert torch.equal(searched["proj.basis"], small["proj.basis"]) and small["proj.refreshes"] == 5
    for size in (1e4, 1e30):
        _, large = after(CoapAdamW, size=size, steps=3, reproject_factor=9)
        _, before = after(CoapAdamW, size=size, steps=1, reproject_factor=9)
        assert abs((large["proj.basis"] - before["proj.basis"]).norm() - 0.1) <= 2 * 40 * UNIT32
        assert orthonormality(large) > 100 * 40 * UNIT32


@pytest.mark.parametrize("proj_type", ["left", "right"])
def test_the_normalized_step_has_one_length_at_any_size(proj_type: str) -> None:
    keys: dict[str, Any] = {"reproject_factor": 9, "eq5": "normalized", "proj_type": proj_type, "eps": 0.0}
    states = [after(CoapAdamW, size=2.0**power, **keys)[1] for power in (-60, -10, 0, 10, 60)]
    _, start = after(CoapAdamW, steps=1, **keys)
    for state in states:
        assert orthonormality(state) <= 2 * 40 * UNIT32
        turned = (state["proj.basis"] - start["proj.basis"]).norm() / sqrt(6)
        assert 0.03 < turned < 4 * 0.06  # four steps, each of 0.05 before it is orthonormalized
        assert torch.equal(state["proj.basis"], states[2]["proj.basis"])  # powers of two are exact


def test_gradients_of_rank_one_and_moments_of_zeros() -> None:
    weight = nn.Parameter(draw(40, 24))
    optimizer = CoapAdamW([weight], 0.01, rank=6, update_proj_gap=1, eq5="normalized", betas=(0.0, 0.999))
    for step in range(6):
        weight.grad = torch.outer(draw(40, seed=step), draw(24, seed=step + 9)) * (step % 3 != 1)
        optimizer.step()
    assert bool(torch.isfinite(weight).all()) and orthonormality(optimizer.state[weight]) <= 2 * 40 * UNIT32


def test_the_rank_is_a_quarter_and_the_state_galores() -> None:
    weight = nn.Parameter(draw(40, 24))
    optimizer = CoapAdamW([weight])
    weight.grad = draw(40, 24, seed=1)
    optimizer.step()
    assert optimizer.state[weight]["proj.basis"].shape == (24, 6)
    held = optimizer.state_bytes()
    assert (
        held
        == estimate_state_bytes([(40, 24)], "coap", rank=None)
        == estimate_state_bytes([(40, 24)], "galore", rank=6)
    )
    assert held == formula_state_bytes([(40, 24)], 0, rank=6, basis_bytes=4, moment_bytes=4) + 8


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"reproject_factor": 0}, "CoapAdamW: `reproject_factor` must be an int >= 1, got 0"),
        ({"reproject_factor": 2.0}, "CoapAdamW: `reproject_factor` must be an int >= 1, got 2.0"),
        ({"eq5": "paper"}, "CoapAdamW: `eq5` must be one of reference, normalized, got 'paper'"),
        ({"proj_type": "full"}, "CoapAdamW: `proj_type` must be one of std, reverse_std, left, right, got 'full'"),
    ],
)
def test_refusals(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CoapAdamW([nn.Parameter(draw(8, 9))], rank=2, **keys)
    with pytest.raises(TypeError, match="`projector` must be one of its keys"):
        CoapAdamW([nn.Parameter(draw(8, 9))], rank=2, projector="svd")

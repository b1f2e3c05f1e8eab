"""Gradients of any finite size: the subspace, its captured share and the step do not notice where it is no overflow."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lowrank_core.optim import GaLoreAdamW
from lowrank_core.optim.parts.products import near_one
from optim_cases import draw
from testing import tolerance
from torch import Tensor, nn

EXPONENTS = {torch.float32: (-100, 120), torch.bfloat16: (-100, 120), torch.float64: (-1000, 1015)}


def first_step(grad: Tensor, proj_type: str = "std", **keys: object) -> tuple[float, Tensor, Tensor]:
    """Captured share, basis and change of the weight."""
    weight = nn.Parameter(torch.zeros_like(grad))
    optimizer = GaLoreAdamW([weight], lr=1.0, eps=0.0, scale=1.0, rank=4, proj_type=proj_type, **keys)
    weight.grad = grad
    optimizer.step()
    state = optimizer.state[weight]
    basis = state.get("proj.basis", state.get("proj.basis_left"))
    return float(state["proj.captured"]), basis.clone(), weight.detach()


@pytest.mark.parametrize("proj_type", ["left", "right", "full"])
@pytest.mark.parametrize("dtype", EXPONENTS, ids=str)
def test_the_share_and_the_basis_are_those_of_any_power_of_two(dtype: torch.dtype, proj_type: str) -> None:
    grad = draw(16, 24).to(dtype)
    captured, basis, _ = first_step(grad, proj_type)
    for exponent in (*EXPONENTS[dtype], -40, 40, -62, 62):
        scaled = (grad.double() * 2.0**exponent).to(dtype)  # exactly: no bit is lost at these exponents
        assert torch.equal(scaled.double() * 2.0**-exponent, grad.double())
        assert first_step(scaled, proj_type)[0] == captured
        assert torch.equal(first_step(scaled, proj_type)[1], basis)


@pytest.mark.parametrize("size", [1e-44, 1e-40, 1e-38, 1e-23, 1e-10, 1e10, 1e19, 1e30, 3e37])
def test_the_share_at_sizes_that_are_no_power_of_two(size: float) -> None:
    grad = draw(16, 24)
    scaled = grad * size
    exact = torch.linalg.svdvals(scaled.double()).square()
    # The search is random: what it misses of the optimum it misses at size 1 too.
    missed = torch.linalg.svdvals(grad.double()).square()
    found = first_step(grad)[0] / float(missed[:4].sum() / missed.sum())
    share = first_step(scaled)[0] / float(exact[:4].sum() / exact.sum())
    lost = 16 * 24 * tolerance.UNIT[torch.float32] + (0.5 * 1.4e-45 / size) ** 0.5 * 2  # what denormals have lost
    assert abs(share - found) <= lost


@given(st.integers(-148, 127), st.integers(0, 2**32 - 1))
def test_a_captured_share_is_always_one(exponent: int, seed: int) -> None:
    grad = (draw(6, 9, seed=seed).double().clamp(-1, 1) * 2.0**exponent).float()
    if bool(grad.any()):
        captured, basis, _ = first_step(grad)
        assert 0.0 <= captured <= 1.0
        assert bool(basis.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("exponent", [-1074, -1022, -149, -126, -33, 0, 33, 127, 1023])
def test_near_one_is_exact(dtype: torch.dtype, exponent: int) -> None:
    matrix = torch.tensor([[1.0, -0.5], [0.25, 0.0]], dtype=torch.float64) * 2.0**exponent
    matrix = matrix.to(dtype)
    if bool(matrix.any()) and bool(matrix.isfinite().all()):
        scaled, taken = near_one(matrix)
        assert taken == 0 or abs(taken) > 32
        largest = float(scaled.abs().max())
        assert 2.0**-34 < largest < 2.0**34
        assert torch.equal(scaled / scaled[0, 0], matrix / matrix[0, 0])

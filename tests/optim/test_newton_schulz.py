"""Newton and Schulz' iteration: its polynomial, batches, sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lowrank_core.ops.products import takes_bfloat16
from lowrank_core.optim.devices import without_kernels
from lowrank_core.optim.parts.rules import newton_schulz as newton_schulz_rule
from lowrank_core.optim.parts.rules.newton_schulz import NewtonSchulz
from optim_cases import draw
from plain_bases import STEEP, newton_schulz
from plain_steps import UNIT
from torch import Tensor


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (3, 16, 16), (2, 2, 9, 5), (1, 7), (7, 1)])
def test_the_iteration_is_its_polynomial(shape: tuple[int, ...], dtype: torch.dtype, kernels: bool) -> None:
    matrices, rule = draw(*shape).to(dtype), NewtonSchulz()

    def check() -> None:
        found = rule.orthogonalized(matrices)
        assert found.shape == matrices.shape and found.dtype == dtype
        flat, ours = matrices.reshape(-1, *shape[-2:]), found.reshape(-1, *shape[-2:])
        # Operands of products in bfloat16 where they are faster, else the working precision.
        unit = 2.0**-9 if dtype == torch.float32 else UNIT
        for one, other in zip(flat, ours, strict=True):
            expected = torch.from_numpy(newton_schulz(one.double().numpy()))
            assert (other.double() - expected).norm() <= 5 * 8 * unit * expected.norm() * STEEP
            values = torch.linalg.svdvals(other.double())
            assert values.max() < 1.3

    if kernels:
        check()
        return
    with without_kernels():
        check()


def test_a_batch_is_each_alone() -> None:
    matrices, rule = draw(5, 24, 16), NewtonSchulz()
    alone = torch.stack([rule.orthogonalized(matrix) for matrix in matrices])
    assert torch.equal(rule.orthogonalized(matrices), alone)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_any_size(size: float) -> None:
    rule = NewtonSchulz(eps=1e-37)
    near, far = rule.orthogonalized(draw(6, 8)), rule.orthogonalized(size * draw(6, 8))
    assert (near - far).norm() <= 2.0**-7 * near.norm()
    assert not rule.orthogonalized(torch.zeros(6, 8)).any()


@pytest.mark.parametrize("shape", [(6, 40), (40, 6)])
def test_products_are_those_of_the_shorter_side(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, multiply = [], newton_schulz_rule.multiply_into

    def counted(out: Tensor, left: Tensor, right: Tensor, **options: Any) -> None:
        sizes.append((*left.shape, right.shape[1]))
        multiply(out, left, right, **options)

    monkeypatch.setattr(newton_schulz_rule, "multiply_into", counted)
    NewtonSchulz(steps=2).orthogonalized(draw(*shape))
    assert sizes == [(6, 40, 6), (6, 6, 6), (6, 6, 40)] * 2


@pytest.mark.skipif(not takes_bfloat16(), reason="operands are not rounded here")
def test_the_terms_of_the_polynomial_see_the_same_rounded_operands(monkeypatch: pytest.MonkeyPatch) -> None:
    """They nearly cancel: with operands that only the products round, the error is larger by a half and more."""
    matrix = draw(256, 256)
    exact = torch.from_numpy(newton_schulz(matrix.double().numpy()))
    error = (NewtonSchulz().orthogonalized(matrix) - exact).norm()
    monkeypatch.setattr(newton_schulz_rule, "_operand", lambda x: x)
    assert 5 * error < 4 * (NewtonSchulz().orthogonalized(matrix) - exact).norm()

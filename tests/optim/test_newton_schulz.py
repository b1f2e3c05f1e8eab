"""Newton and Schulz' iteration: its polynomial, batches, sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lowrank_core import _core
from lowrank_core.ops.products import orthogonalize_into, takes_bfloat16
from lowrank_core.optim.devices import without_kernels
from lowrank_core.optim.parts.rules.newton_schulz import COEFFICIENTS, NewtonSchulz
from optim_cases import draw, same
from plain_bases import STEEP, newton_schulz
from plain_steps import UNIT
from testing import machine
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SIZES = [(5, 3), (16, 33), (67, 67), (131, 64), (40, 300)]


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


@pytest.mark.parametrize("level", _core.isa_levels())
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_polynomial_at_every_level(dtype: torch.dtype, threads: int, level: str) -> None:
    """In tiles, vectors and what is left of both, the members of a list of very different length."""
    matrices = [draw(*shape, seed=i).to(dtype) * 10.0 ** (i - 2) for i, shape in enumerate(SIZES)]
    rule = NewtonSchulz()
    with machine.isa(level), machine.threads(threads):
        unit = {torch.float64: UNIT, torch.float32: 2.0**-9 if takes_bfloat16() else 2.0**-24}[dtype]
        found = [torch.full_like(matrix, float("nan")) for matrix in matrices]
        rule.orthogonalize_into(found, matrices)
    for matrix, ours in zip(matrices, found, strict=True):
        expected = torch.from_numpy(newton_schulz(matrix.double().numpy()))
        # In each of five steps: rounded operands decide, or else sums of min(m, n) and of max(m, n) products.
        terms = 8 if unit > 2.0**-20 else 8 * sum(matrix.shape)
        assert (ours.double() - expected).norm() <= 5 * terms * unit * expected.norm() * STEEP


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
def test_products_are_those_of_the_shorter_side(shape: tuple[int, int]) -> None:
    """By torch's operations; kernels work in as little memory as that takes."""
    sizes: list[tuple[int, ...]] = []

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if op is torch.ops.aten.mm.default:
                sizes.append((*args[0].shape, args[1].shape[1]))
            return op(*args, **(kwargs or {}))

    with without_kernels(), Products():
        NewtonSchulz(steps=2).orthogonalized(draw(*shape))
    expected = [(6, 40, 6), (6, 6, 6), (6, 6, 40)] * 2
    assert sizes == expected


@pytest.mark.parametrize("level", _core.isa_levels())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_list_is_each_alone_for_any_threads(dtype: torch.dtype, level: str) -> None:
    """Of any shapes and strides; the last one is larger than what one thread takes by itself."""
    shapes = [(24, 16), (16, 24), (1, 5), (5, 1), (0, 3), (70, 70), (2, 9, 33), (3, 2**22 // 3 + 1)]
    matrices = [draw(*shape, seed=i).to(dtype) for i, shape in enumerate(shapes)]
    matrices += [draw(40, 30).to(dtype).mT, draw(40, 60).to(dtype)[1::2, ::3]]
    rule, ends = NewtonSchulz(steps=2), []
    with machine.isa(level):
        for count in (1, 2, 3):
            with machine.threads(count):
                ends.append([torch.empty(matrix.shape, dtype=dtype) for matrix in matrices])
                rule.orthogonalize_into(ends[-1], matrices)
        alone = [rule.orthogonalized(matrix) for matrix in matrices]
        for matrix, found in zip(matrices[-2:], alone[-2:], strict=True):
            assert torch.equal(rule.orthogonalized(matrix.contiguous()), found)
    assert all(same(ends[0], other) for other in (*ends[1:], alone))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_read_as_it_is(dtype: torch.dtype) -> None:
    matrix = draw(20, 33).to(dtype)
    found = torch.empty(20, 33)
    orthogonalize_into([found], [matrix], coefficients=COEFFICIENTS, steps=5, eps=1e-7)
    assert torch.equal(found, NewtonSchulz().orthogonalized(matrix.float()))


def test_no_step_divides_by_the_length() -> None:
    matrix = draw(6, 8)
    found = NewtonSchulz(steps=0).orthogonalized(matrix)
    assert torch.allclose(found, matrix / matrix.double().norm(), rtol=3 * 2.0**-24, atol=0)


@pytest.mark.skipif(not takes_bfloat16(), reason="operands are not rounded here")
def test_the_terms_of_the_polynomial_see_the_same_rounded_operands() -> None:
    """They nearly cancel: with operands that only the products round, the error is larger by a half and more."""
    matrix = draw(256, 256)
    exact = torch.from_numpy(newton_schulz(matrix.double().numpy()))
    x, (a, b, c) = matrix / matrix.norm(), COEFFICIENTS
    for _ in range(5):
        gram = rounded(x) @ rounded(x).mT
        polynomial = b * gram + c * rounded(gram) @ rounded(gram)
        x = a * x + rounded(polynomial) @ rounded(x)
    assert 5 * (NewtonSchulz().orthogonalized(matrix) - exact).norm() < 4 * (x - exact).norm()


def rounded(x: Tensor) -> Tensor:
    return x.bfloat16().float()


@pytest.mark.parametrize(
    ("out", "matrix", "rule"),
    [
        (torch.zeros(3, 4), torch.ones(4, 3), r"`from_` must be \[3, 4\], got \[4, 3\]"),
        (torch.zeros(3, 4, dtype=torch.bfloat16), torch.ones(3, 4), "`to` must be float32 or float64"),
        (torch.zeros(4, 3).mT, torch.ones(3, 4), "with rows along memory"),
        (torch.zeros(2, 3, 4), torch.ones(3, 3, 4), "the same leading size"),
    ],
    ids=["shape", "dtype", "strides", "batch"],
)
def test_refusals(out: Tensor, matrix: Tensor, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        orthogonalize_into([out], [matrix], coefficients=COEFFICIENTS, steps=1, eps=1e-7)


@pytest.mark.parametrize("eps", [0.0, -1e-7, float("nan")])
def test_a_part_of_its_own_refuses_what_no_length_is_divided_by(eps: float) -> None:
    with pytest.raises(ValueError, match="NewtonSchulz: `eps` must be a number > 0, got"):
        NewtonSchulz(eps=eps)

"""Every optimizer with plain torch operations alone, as on a device that the package has no kernels for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lowrank_core.optim import GaLoreAdamW, fused
from lowrank_core.optim.devices import has_kernels, without_kernels
from lowrank_core.optim.parts import products
from lowrank_core.optim.parts.products import Search
from optim_cases import ON_DEVICES, Case, Zoo, backward, draw, every_optimizer_on_devices, same, snapshot, train
from test_deferred_state import defer
from testing import tolerance
from torch import Tensor, nn

U64 = tolerance.UNIT[torch.float64]
FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def decaying(m: int, n: int, seed: int = 0) -> Tensor:
    """[m, n] float64 with singular values 1, 1/2, 1/4, ..."""
    u, _, vh = torch.linalg.svd(draw(m, n, seed=seed).double(), full_matrices=False)
    return u @ torch.diag(0.5 ** torch.arange(min(m, n), dtype=torch.float64)) @ vh


def test_the_switch() -> None:
    assert has_kernels(torch.device("cpu")) and has_kernels(torch.device("meta"))
    assert not has_kernels(torch.device("cuda"))
    with pytest.raises(KeyError), without_kernels():
        assert not has_kernels(torch.device("cpu"))
        raise KeyError
    assert has_kernels(torch.device("cpu"))


@every_optimizer_on_devices
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: str(dtype)[6:])
def test_it_trains_and_resumes(case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a single kernel: all of those that a step could call are made to fail."""

    def fail(*args: Any, **keys: Any) -> None:
        raise AssertionError("a kernel was called")

    for name in ("gemm", "range_finder", "rsvd", "subspace_project", "subspace_update", "encode_moment"):
        monkeypatch.setattr(f"lowrank_core._core.{name}", fail)
    model = Zoo(dtype)
    with without_kernels():
        optimizer = case.make(model.parameters())
        losses = train(model, optimizer, range(40))
        assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
        twin = copy.deepcopy(model)
        other = case.make(twin.parameters())
        other.load_state_dict(optimizer.state_dict())
        train(model, optimizer, range(40, 44))
        train(twin, other, range(40, 44))
    assert same(snapshot(model, optimizer), snapshot(twin, other))


@pytest.mark.parametrize("case", [case for case in ON_DEVICES if case.keys.get("projector") == "svd"], ids=str)
def test_it_equals_the_kernels(case: Case) -> None:
    """With the same subspaces, by LAPACK: 5 steps, which round their products in another order."""
    models = [Zoo(torch.float64), Zoo(torch.float64)]
    one, other = (case.make(model.parameters(), weight_decay=0.1) for model in models)
    for number in range(5):
        backward(models[0], number)
        for param, twin in zip(*(model.parameters() for model in models), strict=True):
            twin.grad = None if param.grad is None else param.grad.clone()
        one.step()
        with without_kernels():
            assert not any(fused.fused(bucket) for bucket in other._gather())
            other.step()
    for param, twin in zip(*(model.parameters() for model in models), strict=True):
        # R sums at most 36 products and an entry may be 1 / 6 of the mean; P N sums at most 12, as in test_fused.py.
        bound = 5 * (case.lr * 12 * 36 * tolerance.gamma(36, torch.float64) + 4 * U64)
        assert bool(((param - twin).abs() <= bound * (1 + twin.abs())).all())


@every_optimizer_on_devices
def test_as_on_an_accelerator(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no verdict is waited for either: the host's numbers, but for powers of betas that are computed there."""
    models = [Zoo(torch.float64), Zoo(torch.float64)]
    with without_kernels():
        optimizers = [case.make(model.parameters()) for model in models]
        for number in range(8):
            for model, optimizer, there in zip(models, optimizers, (True, False), strict=True):
                defer(monkeypatch, there)
                backward(model, number)
                for one, other in zip(model.parameters(), models[0].parameters(), strict=True):
                    one.grad = copy.deepcopy(other.grad)
                if number == 4:
                    model.gain.grad.fill_(torch.nan)
                optimizer.step()
    assert [optimizer.skipped_steps for optimizer in optimizers] == [1, 1]
    for one, other in zip(*(model.state_dict().values() for model in models), strict=True):
        # As test_deferred.py has it: 8 steps, each of which rounds its update and the weight a few times: 4 + 4 u.
        assert bool(((one - other).abs() <= 8 * 8 * U64 * other.norm()).all())


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_products_are_those_of_the_kernels(side: str, dtype: torch.dtype) -> None:
    grad, basis = draw(23, 31).to(dtype), draw(23 if side == "left" else 31, 5, seed=1).to(dtype)
    low = products.project(grad, basis, side)
    with without_kernels():
        plain = products.project(grad, basis, side)
        lifted = products.project_back(low, basis, side)
    magnitude = products.project(grad.abs(), basis.abs(), side)
    assert bool(((low - plain).abs() <= 2 * tolerance.gamma(33, dtype) * magnitude).all())
    back, size = products.project_back(low, basis, side), products.project_back(low.abs(), basis.abs(), side)
    assert bool(((back - lifted).abs() <= 2 * tolerance.gamma(7, dtype) * size).all())


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize(("m", "n"), [(40, 24), (24, 40), (30, 30), (1, 9), (9, 1)])
def test_bases_are_orthonormal_and_leading(m: int, n: int, dtype: torch.dtype, warm: bool) -> None:
    matrix, rank = decaying(m, n).to(dtype), min(6, m, n)
    held = torch.linalg.qr(draw(m, rank, seed=9).double()).Q.to(dtype) if warm else None
    with without_kernels():
        (found,) = products.left_vectors([Search(matrix, rank, held, 3)], oversample=10, niter=2)
        again = products.left_vectors([Search(matrix, rank, held, 3)] * 2, oversample=10, niter=2)
    assert same(again, [found, found])
    work, u = (torch.float64, U64) if dtype == torch.float64 else (torch.float32, tolerance.UNIT[torch.float32])
    assert found.dtype == work
    gram = found.double().mT @ found.double()
    assert (gram - torch.eye(rank, dtype=torch.float64)).abs().max() <= 20 * max(m, n) * u  # Householder's, c = 20
    left, values, _ = torch.linalg.svd(matrix.double(), full_matrices=False)
    # As for the kernels (test_subspaces.py): Wedin's for rounding, Halko's for the sketch of 16 columns.
    values = torch.cat([values, values.new_zeros(20)])
    rounding = 20 * max(m, n) * u / (values[rank - 1] - values[rank])
    sketch = 10 * (1 + (6 / 9) ** 0.5 + 2.72 * 4 / 10 * 18**0.5) * (values[16] / values[rank - 1]) ** 5
    missed = left[:, :rank] - found.double() @ (found.double().mT @ left[:, :rank])
    assert torch.linalg.matrix_norm(missed, 2) <= rounding + sketch
    first = found.gather(0, found.abs().argmax(0, keepdim=True))
    assert bool((first > 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_pairs_of_vectors_belong_together(dtype: torch.dtype) -> None:
    matrix = decaying(12, 9).to(dtype)
    with without_kernels():
        left, right = products.both_vectors(Search(matrix, 4, None, 0), oversample=10, niter=2)
    expected = torch.diag(0.5 ** torch.arange(4, dtype=torch.float64)).to(dtype)
    assert (left.mT @ matrix @ right - expected).abs().max() <= 20 * 12 * tolerance.UNIT[dtype]


@pytest.mark.parametrize("exponent", [-140, -126, -60, 0, 60, 126])
def test_any_scale(exponent: int) -> None:
    """A power of two changes no bit of a basis, down to numbers that are subnormal."""
    matrix = (64 * draw(20, 12)).round() / 64  # a few digits, which a subnormal number still has
    with without_kernels():
        near, far = (
            products.left_vectors([Search(m, 3, None, 5)], oversample=4, niter=1)[0]
            for m in (matrix, torch.ldexp(matrix, torch.tensor(exponent)))
        )
    assert same(near, far)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"moment_dtype": "int8"}, "`moment_dtype` must be 'auto' for weights on cpu in this version"),
        ({"moment_dtype": "bfloat16"}, "`moment_dtype` must be 'auto' for weights on cpu in this version"),
        ({"rounding": "stochastic"}, "`rounding` must be 'nearest' for weights on cpu in this version"),
    ],
)
def test_what_needs_a_kernel_is_refused(keys: dict[str, str], message: str) -> None:
    weight = nn.Parameter(draw(8, 6).bfloat16())
    weight.grad = torch.ones_like(weight)
    with without_kernels():
        optimizer = GaLoreAdamW([weight], rank=2, **keys)
        with pytest.raises(NotImplementedError, match=message):
            optimizer.step()

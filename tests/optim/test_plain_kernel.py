"""The kernel of weights that are not projected: the composition's bits, whatever the dtype, codec, level or list."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from lowrank_core import _core
from lowrank_core.ops.subspace_step.plain import norms_list
from lowrank_core.optim import GaLoreAdamW, plain, torch_rounding
from lowrank_core.optim.devices import nonfinite
from optim_cases import composed, draw, every_dtype, same
from testing import machine, tolerance
from torch import Tensor, nn

# No element, one, parts of a block of codes and of a vector, more than a run that stays in a cache, more than a task.
SHAPES = ((), (0,), (1,), (7,), (255,), (256,), (5, 3, 2), (130, 65), (65_537 + 40,))
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "maximize": {"maximize": True, "weight_decay": 0.1},
    "half betas": {"betas": (0.5, 0.9), "eps": 1e-5},
    "low betas": {"betas": (0.3, 0.25), "eps": 0.0},
    "no rate": {"lr": 0.0, "weight_decay": 0.5},
}
every_level = pytest.mark.parametrize("level", _core.isa_levels())

Ends = tuple[list[Tensor], list[dict[str, Any]]]


class Spy:
    """How many weights each call of the kernel took, without calls that it refused."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: list[int] = []
        compiled = _core.adamw_step

        def called(*args: Any, **keys: Any) -> Any:
            compiled(*args, **keys)
            self.counts.append(len(args[0]))

        monkeypatch.setattr(_core, "adamw_step", called)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Spy:
    torch_rounding.torchs_rounding()  # which calls it, once in a process
    return Spy(monkeypatch)


def weights_of(dtype: torch.dtype) -> list[nn.Parameter]:
    return [nn.Parameter(draw(prod(shape), seed=i).to(dtype).view(shape)) for i, shape in enumerate(SHAPES)]


def gradient(weight: Tensor, number: int) -> Tensor:
    return draw(weight.numel(), seed=number).to(weight.dtype).view(weight.shape)


def ends(
    weights: list[nn.Parameter], make: Callable[[Tensor, int], Tensor] = gradient, steps: int = 3, **keys: Any
) -> Ends:
    """Weights and states after a few steps; the last weight takes no part in the first one."""
    optimizer = GaLoreAdamW(weights, **{"lr": 0.05, "rank": None, **keys})
    for number in range(1, steps + 1):
        for i, weight in enumerate(weights):
            weight.grad = None if number == 1 and i == len(weights) - 1 else make(weight.detach(), 10 * number + i)
        optimizer.step()
    return [weight.detach() for weight in weights], [optimizer.state[weight] for weight in weights]


@every_level
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_has_the_bits_of_the_composition(kernel: Spy, dtype: torch.dtype, options: str, level: str) -> None:
    with machine.isa(level):
        ours = ends(weights_of(dtype), **OPTIONS[options])
    assert kernel.counts == [len(SHAPES) - 1, len(SHAPES), len(SHAPES)]
    with composed():
        theirs = ends(weights_of(dtype), **OPTIONS[options])
    assert len(kernel.counts) == 3 and same(ours, theirs)


@every_level
@pytest.mark.parametrize(
    ("dtype", "moments", "rounding"),
    [
        *product((torch.float32, torch.bfloat16, torch.float16), ("bfloat16", "int8"), ("nearest", "stochastic")),
        (torch.bfloat16, "float32", "stochastic"),
        (torch.float64, "float32", "stochastic"),
    ],
    ids=str,
)
def test_codecs_and_draws_have_the_bits_of_the_composition(
    kernel: Spy, dtype: torch.dtype, moments: str, rounding: str, level: str
) -> None:
    keys = {"moment_dtype": moments, "rounding": rounding, "weight_decay": 0.1, "seed": 3}
    with machine.isa(level):
        ours = ends(weights_of(dtype), **keys)
    assert len(kernel.counts) == 3
    with composed():
        assert same(ours, ends(weights_of(dtype), **keys))


@every_dtype
def test_threads_do_not_change_a_bit(dtype: torch.dtype) -> None:
    found = []
    for count in (1, 2, 3):
        with machine.threads(count):
            found.append(ends(weights_of(dtype), moment_dtype="auto", rounding="stochastic"))
    assert same(found[0], found[1]) and same(found[0], found[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("keys", [{}, {"betas": (0.5, 0.9), "maximize": True}, {"betas": (0.2, 0.9)}], ids=str)
def test_it_has_the_bits_of_torchs_single_tensor_adamw(kernel: Spy, dtype: torch.dtype, keys: dict[str, Any]) -> None:
    ours, theirs = weights_of(dtype), weights_of(dtype)
    optimizer = GaLoreAdamW(ours, lr=0.05, rank=None, weight_decay=0.1, **keys)
    reference = torch.optim.AdamW(theirs, lr=0.05, weight_decay=0.1, foreach=False, **keys)
    for number in range(6):
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            one.grad, other.grad = gradient(one.detach(), 10 * number + i), gradient(one.detach(), 10 * number + i)
        optimizer.step()
        reference.step()
    assert kernel.counts == [len(SHAPES)] * 6
    assert same([w.detach() for w in ours], [w.detach() for w in theirs])


def strided(weight: Tensor, number: int) -> Tensor:
    """Every second element of a gradient twice as long."""
    return draw(2 * weight.numel(), seed=number).to(weight.dtype)[::2].view(weight.shape)


def expanded(weight: Tensor, number: int) -> Tensor:
    """One number for all elements, as the gradient of a sum is."""
    return draw(1, seed=number).to(weight.dtype)[0].expand(weight.shape)


@pytest.mark.parametrize("make", [strided, expanded])
def test_gradients_that_are_no_run_of_memory(kernel: Spy, make: Callable[[Tensor, int], Tensor]) -> None:
    ours = ends(weights_of(torch.float32), make)
    assert len(kernel.counts) == 3
    with composed():
        assert same(ours, ends(weights_of(torch.float32), make))


def mixed() -> list[nn.Parameter]:
    """Dense weights with others between them: a transpose, more dimensions than a kernel takes."""
    tall = torch.empty(6, 4).copy_(draw(6, 4)).T
    return [nn.Parameter(w) for w in (draw(9), draw(8), tall, draw(5), draw(*(2,) * 9), draw(3))]


def test_weights_that_are_no_run_of_memory_are_composed_in_their_place(kernel: Spy) -> None:
    ours = ends(mixed())
    assert kernel.counts == [2, 1, 2, 1, 1, 2, 1, 1]
    with composed():
        assert same(ours, ends(mixed()))


def overlapping() -> list[nn.Parameter]:
    whole = draw(40)
    return [nn.Parameter(part) for part in (draw(5), whole[:30], whole[20:], draw(4))]


def test_weights_that_share_memory_are_stepped_one_after_the_other() -> None:
    ours = ends(overlapping())
    with composed():
        assert same(ours, ends(overlapping()))


def test_a_torch_that_rounds_in_no_way_of_the_kernels_is_composed(kernel: Spy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "torchs_rounding", lambda: None)
    ours = ends(weights_of(torch.float32))
    assert kernel.counts == []
    with composed():
        assert same(ours, ends(weights_of(torch.float32)))


def test_how_torch_rounds_is_found_by_its_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other way of lerp and addcmul is refused: by separate operations in place of torch's, where these are fused,
    or by the least change that shows."""
    found = torch_rounding.torchs_rounding()
    assert found is not None  # or every plain weight is composed with this torch
    by_torch = torch_rounding._by_torch

    def off(sample: Any) -> Any:
        sample = by_torch(sample)
        sample.weight[-1].copy_(torch.nextafter(sample.weight[-1], torch.zeros_like(sample.weight[-1])))
        return sample

    monkeypatch.setattr(torch_rounding, "_by_torch", off)
    assert torch_rounding.torchs_rounding.__wrapped__() is None


@pytest.mark.skipif(not _core.mkl_roots(), reason="this torch takes its square roots by other means")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_roots_are_torchs_own(dtype: torch.dtype) -> None:
    """Of numbers of every size: a step of 1 / (root + 1)."""
    v = torch.cat([10.0 ** torch.linspace(-37, 37, 5001), torch.rand(5001), torch.tensor([0.0, 1e-44])]).to(dtype)
    weight, one = torch.zeros_like(v), torch.ones_like(v)
    _core.adamw_step(
        [weight], [one], [one.clone()], [], [v.clone()], [], [(1.0, 1.0)], [1], [0], betas=(0.0, 1.0), eps=1.0, lr=1.0,
        weight_decay=0.0, maximize=False, stochastic=False, fused=True, roots="mkl",
    )  # fmt: skip
    assert torch.equal(-weight, 1 / (v.sqrt() + 1))


def test_the_number_of_mkls_threads_stays_the_callers() -> None:
    with machine.threads(3):
        before = torch.__config__.parallel_info()
        ends(weights_of(torch.float32))
        assert torch.__config__.parallel_info() == before


@every_level
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_that_are_not_finite_are_named(dtype: torch.dtype, level: str) -> None:
    largest, least = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal / 2
    sound = [torch.full((40_000,), largest, dtype=dtype), torch.tensor([-largest, -0.0, least], dtype=dtype)]
    sound += [torch.zeros(0, dtype=dtype), torch.ones((), dtype=dtype), torch.ones(4, 6, dtype=dtype).T]
    with machine.isa(level):
        assert nonfinite(sound) == []
        for value, place in product((torch.inf, -torch.inf, torch.nan), (0, 16_383, 16_384, 39_999)):
            wrong = torch.zeros(40_000, dtype=dtype)
            wrong[place] = value
            assert nonfinite([*sound, wrong, *sound, wrong.view(200, 200).T]) == [5, 11], (value, place)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_norms(dtype: torch.dtype) -> None:
    """Of numbers of any size that float64 can square, the same for any number of threads and for any strides."""
    matrices = [draw(*shape, seed=i).to(dtype) for i, shape in enumerate([(1, 1), (7, 130), (300, 5), (0, 4)])]
    matrices += [1e18 * matrices[1], torch.full((3, 3), 1e-18, dtype=dtype)]
    found = norms_list(matrices)
    for norm, matrix in zip(found, matrices, strict=True):
        exact = float(np.sqrt(np.square(matrix.numpy().astype(np.longdouble)).sum()))
        assert abs(norm - exact) <= tolerance.gamma(matrix.numel() + 2, torch.float64) * exact
    for count in (1, 3):
        with machine.threads(count):
            assert norms_list(matrices) == found
    turned = norms_list([matrix.T.contiguous().T for matrix in matrices])
    assert turned == pytest.approx(found, rel=tolerance.gamma(910, torch.float64), abs=0)

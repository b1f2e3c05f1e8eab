"""That the compiled step is what steps, for every combination that has one, and that it follows torch's settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from lowrank_core import _core
from lowrank_core.optim import (
    AdaRankGradAdamW,
    ApolloAdamW,
    FiraAdamW,
    GaLoreAdamW,
    LowRankOptimizer,
    QGaLoreAdamW,
    devices,
    lifts,
)
from optim_cases import draw, same
from testing import machine
from torch import Tensor, nn

PROJECTORS = ("rsvd", "svd")
MOMENTS = ("auto", "float32", "bfloat16", "int8")
SHAPES = ((24, 40), (40, 24), (24, 24), (12, 4, 3, 3))  # left, right, square, a convolution
HALF = (torch.bfloat16, torch.float16)


class Spy:
    """Calls of one compiled function, and how many weights each took."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: list[int] = []
        self.precisions: list[str] = []
        compiled = getattr(_core, name)

        def called(*args: Any, **keys: Any) -> Any:
            self.counts.append(len(args[0]))
            self.precisions.append(keys["precision"])
            return compiled(*args, **keys)

        monkeypatch.setattr(_core, name, called)


@pytest.fixture
def update(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spy]:
    yield Spy("subspace_update", monkeypatch)


def trained(
    shapes: Any, dtype: torch.dtype, steps: int = 3, kind: type[LowRankOptimizer] = GaLoreAdamW, **keys: Any
) -> list[Tensor]:
    """Weights after a few steps, two of them with a refresh."""
    weights = [nn.Parameter(draw(*shape).to(dtype)) for shape in shapes]
    optimizer = kind(weights, **{"lr": 0.05, "rank": 4, "update_proj_gap": 2, **keys})
    for number in range(steps):
        for weight in weights:
            weight.grad = draw(*weight.shape, seed=number + 1).to(dtype)
        optimizer.step()
    return [weight.detach() for weight in weights]


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize(
    ("projector", "moment_dtype", "dtype"),
    [
        *product(PROJECTORS, MOMENTS, (torch.float32, *HALF)),
        *product(PROJECTORS, ("float32",), (torch.float64,)),
    ],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_every_combination_that_has_a_kernel_is_stepped_by_it(
    update: Spy, projector: str, moment_dtype: str, dtype: torch.dtype, rounding: str
) -> None:
    """One call a step, of all projected weights: every projector, codec of the moments and codec of the basis, which is
    bfloat16 for bfloat16 weights."""
    trained(SHAPES, dtype, projector=projector, moment_dtype=moment_dtype, rounding=rounding)
    assert update.counts == [len(SHAPES)] * 3


@pytest.mark.parametrize("keys", [{"moments": "rotate"}, {"maximize": True}, {"weight_decay": 0.1}, {"scale": 0.5}])
def test_no_other_key_turns_the_kernel_off(update: Spy, keys: dict[str, Any]) -> None:
    trained(SHAPES, torch.float32, **keys)
    assert update.counts == [len(SHAPES)] * 3


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        (GaLoreAdamW, {"rule": "lion"}),
        (GaLoreAdamW, {"rule": "adabelief"}),
        (FiraAdamW, {}),
        (FiraAdamW, {"residual": "code", "limiter": None}),
        (ApolloAdamW, {}),
        (ApolloAdamW, {"projector": "svd", "limiter": None}),
        (ApolloAdamW, {"scale_cap": 10}),
        (ApolloAdamW, {"rank": 1, "scale_type": "tensor", "scale": 128}),
    ],
)
@pytest.mark.parametrize("moment_dtype", MOMENTS)
def test_other_rules_and_residuals(
    update: Spy, kind: type[LowRankOptimizer], keys: dict[str, Any], moment_dtype: str
) -> None:
    trained(SHAPES, torch.float32, kind=kind, moment_dtype=moment_dtype, **keys)
    assert update.counts == [len(SHAPES)] * 3


@pytest.mark.parametrize("moment_dtype", MOMENTS)
def test_directions_of_adafactor_are_lifted_by_a_kernel(update: Spy, moment_dtype: str) -> None:
    trained([*SHAPES, (9, 30)], torch.float32, rule="adafactor", moment_dtype=moment_dtype)
    assert update.counts == [5] * 3


@pytest.mark.parametrize("projector", PROJECTORS)
@pytest.mark.parametrize("moment_dtype", MOMENTS)
def test_qgalore_decodes_few_bases_at_a_time(
    update: Spy, monkeypatch: pytest.MonkeyPatch, projector: str, moment_dtype: str
) -> None:
    """Dense, they take one hundredth of the weights' bytes together, or the bytes that small models may, or are one."""

    def calls(shapes: Sequence[tuple[int, ...]], rank: int) -> list[int]:
        update.counts.clear()
        trained(shapes, torch.float32, kind=QGaLoreAdamW, projector=projector, moment_dtype=moment_dtype, rank=rank)
        return list(update.counts)

    bases = 7 * 400 * 16  # elements: 2.7 hundredths of those of 7 weights
    monkeypatch.setattr(lifts, "_MADE_IN_ANY_CASE", 0)
    assert calls(SHAPES, 4) == [1, 1, 1, 1] * 3
    assert calls([(400, 600)] * 7, 2) == [7] * 3
    assert calls([(400, 600)] * 7, 16) == [2, 2, 2, 1] * 3
    monkeypatch.setattr(lifts, "_MADE_IN_ANY_CASE", bases - 1)
    assert calls([(400, 600)] * 7, 16) == [6, 1] * 3
    monkeypatch.setattr(lifts, "_MADE_IN_ANY_CASE", bases)
    assert calls([(400, 600)] * 7, 16) == [7] * 3


def test_a_group_is_one_call(update: Spy) -> None:
    weights = [nn.Parameter(draw(*shape)) for shape in SHAPES]
    groups = [{"params": weights[:1]}, {"params": weights[1:], "lr": 0.2}]
    optimizer = GaLoreAdamW(groups, rank=4)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert update.counts == [1, 3]


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_the_step_follows_torchs_matmul_precision(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """Both halves of the kernel, and the search; whatever a machine then makes of it."""
    names = ("subspace_project", "subspace_update", "range_finder")
    spies = [Spy(name, monkeypatch) for name in names]
    with machine.matmul_precision(precision):
        trained(SHAPES, torch.float32)
    for name, spy in zip(names, spies, strict=True):
        assert set(spy.precisions) == {precision}, name


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_the_composition_follows_torchs_matmul_precision(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """A weight with two bases is composed: its products are those of `project` and `project_back`."""
    spies = [Spy(name, monkeypatch) for name in ("gemm", "rsvd")]
    with machine.matmul_precision(precision):
        trained([(40, 24)], torch.float32, proj_type="full", moments="rotate")
    for spy in spies:
        assert spy.precisions and set(spy.precisions) == {precision}


def test_a_coarser_precision_shows_where_the_machine_has_one() -> None:
    ends, products = {}, {}
    for precision in ("highest", "high", "medium"):
        products[precision] = torch.empty(300, 4)
        _core.gemm(products[precision], draw(300, 257), torch.full((257, 4), 1 / 3), precision=precision)
        with machine.matmul_precision(precision):
            ends[precision] = trained([(300, 257)], torch.float32, projector="svd")
    for precision in ("high", "medium"):
        assert same(ends["highest"], ends[precision]) == same(products["highest"], products[precision])


def test_gradients_that_a_kernel_has_read_are_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[torch.Size] = []
    judge = devices.nonfinite
    monkeypatch.setattr(devices, "nonfinite", lambda grads: read.extend(g.shape for g in grads) or judge(grads))
    counts = []
    for steps in (1, 2, 3):
        read.clear()
        trained([(24, 40), (40, 24)], torch.float32, steps)
        counts.append(len(read))
    assert counts == [2, 2, 4]  # by the steps that refresh alone


def test_norms_of_all_weights_are_taken_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, compiled = [], _core.norms

    def spy(arrays: list[Tensor]) -> list[float]:
        counts.append(len(arrays))
        return compiled(arrays)

    monkeypatch.setattr(_core, "norms", spy)
    weights = [nn.Parameter(draw(12, 9)) for _ in range(5)]
    optimizer = AdaRankGradAdamW(weights, rank=3, update_proj_gap=2)
    for _ in range(4):
        for weight in weights:
            weight.grad = draw(12, 9)
        optimizer.step()
    assert counts == [5] * 4


@pytest.mark.parametrize(("allowed", "sizes"), [(10**6, [4]), (1, [1] * 8)], ids=["kept", "one by one"])
def test_packed_bases_are_decoded_once_in_a_step_if_they_may_be_kept(
    allowed: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the step is the same."""
    keys: dict[str, Any] = {"kind": QGaLoreAdamW, "update_proj_gap": 100}
    monkeypatch.setattr(lifts, "_MADE_IN_ANY_CASE", 10**6)
    expected, compiled = trained(SHAPES, torch.float32, **keys), _core.dequantize_int4_list
    monkeypatch.setattr(lifts, "_MADE_IN_ANY_CASE", allowed)
    counts: list[int] = []

    def spy(out: list[Tensor], *lists: Any, **options: Any) -> None:
        counts.append(len(out))
        compiled(out, *lists, **options)

    monkeypatch.setattr(_core, "dequantize_int4_list", spy)
    trained(SHAPES, torch.float32, steps=2, **keys)
    before = len(counts)
    counts.clear()
    assert same(expected, trained(SHAPES, torch.float32, steps=3, **keys))
    assert counts[before:] == sizes  # of the third step

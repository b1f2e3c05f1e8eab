"""The table of fused kernels: what they are asked with, and that the composition is their specification."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lowrank_core.optim import GaLoreAdamW, fused
from lowrank_core.optim.bucket import Bucket
from lowrank_core.optim.draft import Draft
from lowrank_core.optim.fused import SubspaceStep
from lowrank_core.optim.parts.codecs import Blocks8, Float32
from lowrank_core.optim.parts.projectors.orthonormal import RandomizedSVD
from lowrank_core.optim.parts.residuals.drop import Drop
from lowrank_core.optim.parts.rules.adam import Adam
from lowrank_core.optim.slots import State
from optim_cases import CASES, Case, Zoo, composed, every_dtype, every_optimizer, same, snapshot, train
from testing import tolerance
from torch import Tensor, nn

STEPS = 5  # two searches for a basis


def both(case: Case, dtype: torch.dtype, numbers: Any, **keys: Any) -> tuple[Zoo, Zoo, Any, Any]:
    """Two models after the same batches, the second one stepped by the composition."""
    model, twin = Zoo(dtype), Zoo(dtype)
    optimizer, reference = case.make(model.parameters(), **keys), case.make(twin.parameters(), **keys)
    for number in numbers:
        train(model, optimizer, [number])
        for param, other in zip(model.parameters(), twin.parameters(), strict=True):
            other.grad = None if param.grad is None else param.grad.clone()
        with composed():
            reference.step()
    return model, twin, optimizer, reference


def step_error(dtype: torch.dtype, lr: float) -> float:
    """How far apart two evaluations of STEPS steps may leave a weight of size 1.

    R is a sum of at most 36 products, so an entry is off by gamma(36) of R's norm, up to sqrt(36) of its root mean
    square and more of a small one; 36 times gamma(36) covers all but entries 1 / 6 of that mean. P N sums at most 12.
    """
    work = tolerance.factor_dtype(dtype)
    return STEPS * (lr * 12 * 36 * tolerance.gamma(36, work) + 4 * tolerance.UNIT[work])


@every_optimizer
@every_dtype
def test_it_equals_the_composition(case: Case, dtype: torch.dtype) -> None:
    model, twin, optimizer, reference = both(case, dtype, range(STEPS), weight_decay=0.1)
    # A weight on the edge between two half-precision numbers, or a code between two, may fall to either side.
    coded = {"int8": 1 / 127, "bfloat16": 2.0**-8}.get(case.moment_dtype, 0.0)
    edge = 2 * STEPS * tolerance.UNIT[dtype] if dtype.itemsize == 2 else 0.0
    for param, other in zip(model.parameters(), twin.parameters(), strict=True):
        apart = (param.double() - other.double()).abs()
        bound = step_error(dtype, case.lr) + edge * (1 + other.double().abs()) + STEPS * case.lr * coded
        assert bool((apart <= bound).all())
    assert optimizer.state_dict()["state"].keys() == reference.state_dict()["state"].keys()
    assert optimizer.state_bytes() == reference.state_bytes()


@pytest.mark.parametrize("moment_dtype", ["float32", "bfloat16", "int8"])
def test_draws_are_those_of_the_composition(moment_dtype: str) -> None:
    """Where the arithmetic is exact, codes and weights agree to the bit: only the draws could differ."""
    params = [nn.Parameter(torch.full((8, 16), 1.0, dtype=torch.bfloat16)) for _ in range(2)]
    for param in params:
        param.grad = torch.zeros_like(param)
        param.grad[:, 0] = 2.0
    ours, theirs = (
        GaLoreAdamW([p], lr=2.0**-10, rank=1, scale=1.0, eps=0.0, moment_dtype=moment_dtype, rounding="stochastic")
        for p in params
    )
    for _ in range(3):
        ours.step()
        with composed():
            theirs.step()
    assert same(ours.state_dict()["state"], theirs.state_dict()["state"])
    assert same(params[0].detach(), params[1].detach())


def test_a_kernel_gets_the_whole_list_with_bases_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    drafted: list[int] = []
    finished: list[tuple[int, set[int]]] = []

    class Spy(SubspaceStep):
        def draft(self, bucket: Bucket, draft: Draft, states: list[State]) -> None:
            drafted.append(len(draft.slots))
            super().draft(bucket, draft, states)

        def finish(self, bucket: Bucket, draft: Draft, states: list[State], gate: Tensor | None) -> None:
            finished.append((len(draft.slots), {state["proj.last_refresh"] for state in states}))
            super().finish(bucket, draft, states, gate)

    key = ("cpu", RandomizedSVD, Drop, Adam, Float32)
    monkeypatch.setitem(fused.FUSED, key, Spy())
    model = Zoo()
    optimizer = CASES[0].make(model.parameters())
    train(model, optimizer, range(4))
    assert finished == [(5, {0}), (5, {0}), (5, {0}), (5, {3})]
    assert drafted == [5, 5, 5, 5]  # once a step, after a refresh where there is one


def test_the_key_names_every_part_that_a_kernel_must_know() -> None:
    model = Zoo(torch.bfloat16)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer = CASES[0].make(model.parameters(), moment_dtype="int8")
    keys = [fused.key_of(bucket) for bucket in optimizer._gather()]
    assert keys == [("cpu", None, None, Adam, Blocks8), ("cpu", RandomizedSVD, Drop, Adam, Blocks8)]
    assert [fused.fused(bucket) for bucket in optimizer._gather()] == [fused.FUSED[key] for key in keys]


@pytest.mark.parametrize("place", ["projected", "plain"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_non_finite_gradient_is_found_in_what_was_drafted(place: str, value: float) -> None:
    model = Zoo()
    optimizer = CASES[0].make(model.parameters())
    train(model, optimizer, range(2))
    before = snapshot(model, optimizer)
    (model.down.weight if place == "projected" else model.down.bias).grad.view(-1)[-1] = value
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert same(before, snapshot(model, optimizer))


def test_overflow_of_a_projection_is_no_reason_to_skip() -> None:
    """The gradient decides: what the composition does with it is done."""
    param = nn.Parameter(torch.ones(4, 6))
    optimizer = GaLoreAdamW([param], lr=0.1, rank=2, update_proj_gap=100)
    param.grad = torch.eye(4, 6)
    optimizer.step()
    param.grad = torch.full((4, 6), 3e38)
    optimizer.step()
    assert optimizer.skipped_steps == 0
    assert int(optimizer.state[param]["step"]) == 2


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_weights_that_are_no_matrix_in_memory(layout: torch.memory_format) -> None:
    start = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    grads = [torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(i)) for i in range(1, 4)]
    ends: list[Tensor] = []
    for weight in (start.clone(memory_format=layout), start.clone()):
        param = nn.Parameter(weight)
        optimizer = GaLoreAdamW([param], lr=0.1, rank=2)
        for grad in grads:
            param.grad = grad.clone(memory_format=layout) if weight is not start else grad.clone()
            optimizer.step()
        ends.append(param.detach())
    assert bool(((ends[0] - ends[1]).abs() <= step_error(torch.float32, 0.1)).all())

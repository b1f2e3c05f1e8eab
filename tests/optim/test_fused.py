"""The table of fused kernels: what it is asked with, and that the composition is its specification."""

from __future__ import annotations

import pytest
import torch
from lowrank_core.optim import fused
from lowrank_core.optim.codecs import BFloat16, Float32, State
from lowrank_core.optim.compose import compose
from lowrank_core.optim.parts import Bucket
from lowrank_core.optim.projectors import NoProjection, RandomizedSVD
from lowrank_core.optim.residuals import Drop
from lowrank_core.optim.rules import Adam
from optim_cases import CASES, Zoo, same, snapshot, train
from torch import Tensor

PROJECTED = ("cpu", RandomizedSVD, Drop, Adam, Float32, Float32)
PLAIN = ("cpu", NoProjection, Drop, Adam, Float32, Float32)


def test_an_entry_gets_the_whole_list_with_bases_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, set[int]]] = []

    def kernel(bucket: Bucket, states: list[State], gate: Tensor | None) -> None:
        calls.append((len(bucket.slots), {state["proj.last_refresh"] for state in states}))
        assert gate is None
        compose(bucket, states, gate)

    monkeypatch.setitem(fused.FUSED, PROJECTED, kernel)
    model, twin = Zoo(), Zoo()
    optimizer, reference = CASES[0].make(model.parameters()), CASES[0].make(twin.parameters())
    train(model, optimizer, range(4))
    assert calls == [(5, {0}), (5, {0}), (5, {0}), (5, {3})]
    monkeypatch.delitem(fused.FUSED, PROJECTED)
    train(twin, reference, range(4))
    assert same(snapshot(model, optimizer), snapshot(twin, reference))


def test_the_key_names_every_part_that_a_kernel_must_know() -> None:
    model = Zoo(torch.bfloat16)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer = CASES[0].make(model.parameters())
    keys = [fused.key_of(bucket) for bucket in optimizer._gather()]
    assert keys == [
        ("cpu", NoProjection, Drop, Adam, Float32, BFloat16),
        ("cpu", RandomizedSVD, Drop, Adam, Float32, BFloat16),
    ]


def test_without_an_entry_the_parts_are_composed() -> None:
    model = Zoo()
    train(model, optimizer := CASES[0].make(model.parameters()), [0])
    assert [fused.key_of(bucket) for bucket in optimizer._gather()] == [PLAIN, PROJECTED]
    assert all(fused.step_of(bucket) is compose for bucket in optimizer._gather())

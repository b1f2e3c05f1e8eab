"""What a step behind a gate leaves alone, and what the host remembers of counts that it does not read."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from lowrank_core.optim import GaLoreAdamW, devices
from optim_cases import CASES, Case, Zoo, backward, draw, every_optimizer_on_devices, same, snapshot, train
from test_fused import composed
from torch import nn


def defer(monkeypatch: pytest.MonkeyPatch, there: bool = True) -> None:
    """As on an accelerator, whose verdicts the host does not wait for."""
    monkeypatch.setattr(devices, "deferred", lambda device: there)


@pytest.mark.parametrize("how", ["load", "load into a fresh one", "deepcopy", "pickle"])
@pytest.mark.parametrize("further", [1, 2, 4, 5])
def test_what_is_known_of_counts_ends_with_a_load(monkeypatch: pytest.MonkeyPatch, how: str, further: int) -> None:
    """An optimizer goes on, goes back to an earlier state, and refreshes when that state is due."""
    defer(monkeypatch)
    model = Zoo()
    optimizer = CASES[0].make(model.parameters(), update_proj_gap=3)
    train(model, optimizer, range(5))
    weights, state = snapshot(model, optimizer)
    train(model, optimizer, range(5, 5 + further))
    model.load_state_dict(weights)
    if how == "load into a fresh one":
        optimizer = CASES[0].make(model.parameters(), update_proj_gap=3)
    optimizer.load_state_dict(state)
    if how == "deepcopy":
        model, optimizer = copy.deepcopy((model, optimizer))
    elif how == "pickle":
        model, optimizer = pickle.loads(pickle.dumps((model, optimizer)))
    refreshed = []
    for number in range(5, 11):
        train(model, optimizer, [number])
        refreshed.append({p.last_refresh_step for p in optimizer.projections()} - {None})
    assert refreshed == [{3}, {6}, {6}, {6}, {9}, {9}]


def test_an_edited_gap_acts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    defer(monkeypatch)
    model = Zoo()
    optimizer = CASES[0].make(model.parameters(), update_proj_gap=100)
    train(model, optimizer, range(4))
    optimizer.param_groups[0]["update_proj_gap"] = 2
    train(model, optimizer, [4])
    assert {p.last_refresh_step for p in optimizer.projections()} == {4, None}


KINDS: dict[str, dict[str, Any]] = {
    "plain": {"rank": None},
    "left": {"rank": 3, "proj_type": "left"},
    "right": {"rank": 3, "proj_type": "right"},
    "full": {"rank": 3, "proj_type": "full"},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["itself", "another"])
def test_a_closed_gate_keeps_every_bit(
    monkeypatch: pytest.MonkeyPatch, where: str, kind: str, dtype: torch.dtype
) -> None:
    """Of the weight too, which decays and moves by momentum whatever its own gradient is."""
    defer(monkeypatch)
    pair = [nn.Parameter(draw(8, 10, seed=seed).to(dtype)) for seed in (1, 2)]
    optimizer = GaLoreAdamW(pair, lr=0.5, weight_decay=0.5, moment_dtype="float32", **KINDS[kind])
    for seed in (3, 4):
        for weight in pair:
            weight.grad = draw(8, 10, seed=seed).to(dtype)
        optimizer.step()
    before = copy.deepcopy([weight.detach() for weight in pair])
    state = copy.deepcopy(optimizer.state_dict())
    pair[0 if where == "itself" else 1].grad[2, 3] = torch.nan
    optimizer.step()
    for weight, old in zip(pair, before, strict=True):
        assert same(weight.detach(), old)
    assert same(optimizer.state_dict(), state)
    assert optimizer.skipped_steps == 1


def test_a_gate_gives_back_every_tensor_that_it_was_given() -> None:
    tensors = [draw(3, 4), draw(5).double(), torch.zeros((), dtype=torch.int64), draw(2, 2).bfloat16()]
    for gate in (None, True, False):
        before = copy.deepcopy(tensors)
        with devices.only_if(None if gate is None else torch.tensor(gate), tensors):
            for tensor in tensors:
                tensor.add_(3)
        assert [same(tensor, old) for tensor, old in zip(tensors, before, strict=True)] == [gate is False] * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_the_verdict_overflows_at_no_finite_size(dtype: torch.dtype) -> None:
    """The largest numbers of each dtype, many of them: their squares and their sum are infinite, they are not."""
    largest = torch.finfo(dtype).max
    for shape in ((), (1,), (7, 300), (3, 4, 5)):
        grads = [torch.full(shape, largest, dtype=dtype), torch.full(shape, -largest, dtype=dtype)]
        assert bool(devices.all_finite(grads)) and all(devices.is_finite(grad) for grad in grads)
        for bad in (torch.nan, torch.inf, -torch.inf):
            grads[1].view(-1)[-1] = bad
            assert not bool(devices.all_finite(grads)) and not devices.is_finite(grads[1])


@every_optimizer_on_devices
def test_gates_that_pass_change_no_bit(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind gates that all pass, with others that do not in between."""
    models = [Zoo(), Zoo()]
    ends = []
    for model, bad in zip(models, ((), (1, 4)), strict=True):
        defer(monkeypatch)
        optimizer = case.make(model.parameters(), weight_decay=0.1)
        for number in range(7):
            if number in bad:
                backward(model, 50)
                model.gain.grad.fill_(torch.inf)
                optimizer.step()
            train(model, optimizer, [number])
        ends.append(snapshot(model, optimizer))
    assert same(*ends)


@every_optimizer_on_devices
def test_a_verdict_that_is_waited_for_is_the_hosts_step(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """`nonfinite="raise"` reads it, and goes on without a gate: the composition's bits."""
    waited, host = Zoo(), Zoo()
    optimizer, other = (case.make(model.parameters(), nonfinite="raise") for model in (waited, host))
    for number in range(7):
        defer(monkeypatch)
        train(waited, optimizer, [number])
        defer(monkeypatch, False)
        with composed():
            train(host, other, [number])
    assert same(snapshot(waited, optimizer), snapshot(host, other))

"""`fused_backward` on the path of an accelerator, whose verdicts the host does not wait for."""

from __future__ import annotations

import pytest
import torch
from layerwise_runs import backward, train
from lowrank_core.optim import FiraAdamW, GaLoreAdamW, devices, fused_backward
from optim_cases import Zoo, loss_of, same, snapshot
from test_deferred import no_reading


@pytest.fixture(autouse=True)
def deferred(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "deferred", lambda device: True)


def test_one_backward_per_step_has_the_bits_of_ordinary_training() -> None:
    model, plain = Zoo(), Zoo()
    optimizer, reference = (GaLoreAdamW(one.parameters(), rank=4, update_proj_gap=3) for one in (model, plain))
    fused_backward(model, optimizer)
    assert train(model, optimizer, 7) == train(plain, reference, 7)
    assert same(snapshot(model, optimizer), snapshot(plain, reference))


@pytest.mark.parametrize("passes", [1, 2])
def test_skipped_steps_leave_no_trace(passes: int) -> None:
    model, clean = Zoo(), Zoo()
    optimizer, reference = (GaLoreAdamW(one.parameters(), rank=4, update_proj_gap=3) for one in (model, clean))
    for one, its in ((model, optimizer), (clean, reference)):
        fused_backward(one, its, max_norm=0.5)
    for step in range(8):
        if step in (0, 2, 3):
            (loss_of(model, 99) * torch.nan).backward()
            optimizer.step()
        for one, its in ((model, optimizer), (clean, reference)):
            backward(one, step, passes)
            its.step()
    assert same(snapshot(model, optimizer), snapshot(clean, reference))
    assert optimizer.skipped_steps == 3


@pytest.mark.parametrize("keys", [{}, {"max_norm": 0.5}, {"max_norm": 0.5, "clip": "projected"}])
def test_a_step_between_two_searches_reads_nothing(keys: dict) -> None:
    model = Zoo()
    optimizer = GaLoreAdamW(model.parameters(), rank=4, update_proj_gap=100)
    handle = fused_backward(model, optimizer, **keys)
    train(model, optimizer, 2, passes=2)
    losses = [loss_of(model, number) for number in (7, 8)]
    with no_reading():
        for loss in losses:
            loss.backward()
        optimizer.step()
    assert (handle.last_norm is None) == (not keys)


def test_what_steps_inside_backward_waits_to_raise() -> None:
    model, plain = Zoo(), Zoo()
    optimizer, reference = (FiraAdamW(one.parameters(), rank=4, nonfinite="raise") for one in (model, plain))
    fused_backward(model, optimizer)
    assert train(model, optimizer, 4) == train(plain, reference, 4)
    assert same(snapshot(model, optimizer), snapshot(plain, reference))
    with pytest.raises(RuntimeError, match="must be finite"):
        (loss_of(model, 1) * torch.nan).backward()

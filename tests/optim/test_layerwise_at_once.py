"""`fused_backward(..., at_once=True)`: every weight steps inside backward, and no gradient is held."""

from __future__ import annotations

import copy

import pytest
import torch
from layerwise_runs import backward, taken, train
from lowrank_core.optim import GaLoreAdamW, fused_backward
from optim_cases import Case, Zoo, draw, every_dtype, every_optimizer, loss_of, same, snapshot
from testing.gradients import bytes_held, every_gradient_alive
from torch import nn


@every_optimizer
@every_dtype
def test_the_bits_are_those_of_ordinary_training(case: Case, dtype: torch.dtype) -> None:
    model, plain = Zoo(dtype), Zoo(dtype)
    optimizer, reference = (
        case.make(one.named_parameters(), weight_decay=0.1, nonfinite="raise") for one in (model, plain)
    )
    fused_backward(model, optimizer, at_once=True)
    assert train(model, optimizer, 8) == train(plain, reference, 8)
    assert same(snapshot(model, optimizer), snapshot(plain, reference))


@every_optimizer
def test_no_gradient_waits_for_the_step(case: Case) -> None:
    """Not in a step with searches either: only the one that passes is there."""
    model = Zoo()
    del model.unused
    optimizer = case.make(model.named_parameters(), nonfinite="raise")
    with every_gradient_alive(model, optimizer) as alive:
        handle = fused_backward(model, optimizer, at_once=True)
        for step in range(4):
            before = copy.deepcopy(dict(model.named_parameters()))
            backward(model, step, 1)
            moved = {name for name, param in model.named_parameters() if not torch.equal(param, before[name])}
            assert moved == {name for name, param in model.named_parameters() if param.numel()}
            assert bytes_held(optimizer) == 0 and taken(model)
            optimizer.step()
    plan = handle.plan()
    assert (plan.held, plan.due) == (0, 0) and plan.ordinary == sum(4 * param.numel() for param in model.parameters())
    assert max(alive) == plan.passing == 4 * max(param.numel() for param in model.parameters())


def made(model: nn.Module, **keys: object) -> GaLoreAdamW:
    return GaLoreAdamW(model.named_parameters(), rank=4, **{"nonfinite": "raise", **keys})


def test_what_is_not_possible_then() -> None:
    model = Zoo()
    with pytest.raises(ValueError, match=r'^fused_backward: `nonfinite` must be "raise" for weights that are stepped'):
        fused_backward(model, made(model, nonfinite="skip"), at_once=True)
    optimizer = made(model)
    with pytest.raises(
        ValueError, match=r"^fused_backward: `max_norm` must be None with at_once=True, .* got 1.0; clip"
    ):
        fused_backward(model, optimizer, at_once=True, max_norm=1.0)
    for wrong in (1, None, "yes"):
        with pytest.raises(ValueError, match=r"^fused_backward: `at_once` must be True or False, got"):
            fused_backward(model, optimizer, at_once=wrong)
    fused_backward(model, optimizer, at_once=True)
    loss_of(model, 0).backward()
    with pytest.raises(RuntimeError, match=r"^backward: `\S+` must get one gradient per step, because at_once=True"):
        loss_of(model, 1).backward()
    with pytest.raises(RuntimeError, match=r"^state_dict: must be taken after step\(\)"):
        optimizer.state_dict()
    optimizer.step()
    loss_of(model, 2).backward()


def test_a_nonfinite_gradient_raises_inside_backward() -> None:
    layer = nn.Linear(6, 8, bias=False)
    optimizer = made(layer)
    fused_backward(layer, optimizer, at_once=True)
    before = layer.weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"^step: the gradient of `weight` \(8, 6\) must be finite"):
        (layer(draw(2, 6)).sum() * torch.inf).backward()
    assert torch.equal(layer.weight, before) and not optimizer.state


def test_a_scaler_is_refused() -> None:
    layer = nn.Linear(6, 8, bias=False)
    optimizer, scaler = made(layer), torch.amp.GradScaler("cpu", init_scale=4.0)
    fused_backward(layer, optimizer, at_once=True)
    scaler.scale(layer(draw(2, 6)).sum()).backward()
    with pytest.raises(RuntimeError, match=r"^step: a GradScaler must not be used with a method that steps inside"):
        scaler.step(optimizer)

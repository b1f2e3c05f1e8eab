"""What lives longer than a step with `fused_backward`: states, the handle, parameters that come and go."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings
import weakref

import pytest
import torch
from layerwise_runs import backward, every_accumulating, every_stepping_inside, keys, taken, train
from lowrank_core.optim import GaLoreAdamW, fused_backward
from optim_cases import Case, Zoo, loss_of, same, snapshot
from torch import nn


@every_accumulating
@pytest.mark.parametrize("passes", [1, 3])
def test_resume_is_bit_for_bit(case: Case, passes: int) -> None:
    runs = []
    for stop in (5, None):
        model = Zoo()
        optimizer = case.make(model.parameters())
        fused_backward(model, optimizer, max_norm=0.5)
        for step in range(8):
            if step == stop:
                file = io.BytesIO()
                torch.save([model.state_dict(), optimizer.state_dict()], file)
                file.seek(0)
                saved = torch.load(file, weights_only=True)
                model = Zoo()
                model.load_state_dict(saved[0])
                optimizer = case.make(model.parameters())
                optimizer.load_state_dict(saved[1])
                fused_backward(model, optimizer, max_norm=0.5)
            backward(model, step, passes)
            optimizer.step()
        runs.append(snapshot(model, optimizer))
    assert same(*runs)


def test_states_between_backward_and_step() -> None:
    model = Zoo()
    optimizer = GaLoreAdamW(model.parameters(), rank=4)
    fused_backward(model, optimizer)
    train(model, optimizer, 1)
    saved = optimizer.state_dict()
    backward(model, 1, 1)
    with pytest.warns(UserWarning, match=r"state_dict: the gradients of 10 parameters .* are not in it"):
        optimizer.state_dict()
    with pytest.raises(RuntimeError, match="load_state_dict: must be called while fused_backward holds no gradients"):
        optimizer.load_state_dict(saved)
    model.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.load_state_dict(optimizer.state_dict())


@every_stepping_inside
def test_a_half_taken_step_is_not_saved(case: Case) -> None:
    model = Zoo()
    optimizer = case.make(model.parameters(), **keys(case))
    fused_backward(model, optimizer)
    backward(model, 0, 1)
    with pytest.raises(RuntimeError, match="state_dict: must be taken after step"):
        optimizer.state_dict()
    optimizer.step()
    optimizer.state_dict()


@pytest.mark.parametrize("whose", ["optimizer", "model"])
@pytest.mark.parametrize("to_none", [True, False])
def test_zeroing_gradients_forgets_what_is_held(whose: str, to_none: bool) -> None:
    model, clean = Zoo(), Zoo()
    optimizer, reference = GaLoreAdamW(model.parameters(), rank=4), GaLoreAdamW(clean.parameters(), rank=4)
    fused_backward(model, optimizer)
    for step in range(4):
        (loss_of(model, 50 + step) * 100).backward()
        (optimizer if whose == "optimizer" else model).zero_grad(set_to_none=to_none)
        backward(model, step, 1)
        optimizer.step()
        (loss_of(model, 60 + step) * 100).backward()
        (optimizer if whose == "optimizer" else model).zero_grad(set_to_none=to_none)
        optimizer.step()  # nothing is left to take
    train(clean, reference, 4)
    assert same(snapshot(model, optimizer), snapshot(clean, reference))


def test_a_step_uses_up_what_is_held() -> None:
    model = Zoo()
    optimizer = GaLoreAdamW(model.parameters(), rank=4)
    fused_backward(model, optimizer)
    train(model, optimizer, 2)
    before = snapshot(model, optimizer)
    optimizer.step()
    assert same(before, snapshot(model, optimizer))
    assert all(param.grad is None for param in model.parameters())


def test_remove_goes_back_to_ordinary_training() -> None:
    model, plain = Zoo(), Zoo()
    optimizer, reference = GaLoreAdamW(model.parameters(), rank=4), GaLoreAdamW(plain.parameters(), rank=4)
    handle = fused_backward(model, optimizer)
    train(model, optimizer, 2)
    backward(model, 7, 1)
    with pytest.warns(UserWarning, match=r"handle.remove: the gradients of 10 parameters are dropped"):
        handle.remove()
    handle.remove()
    assert not any(param._post_accumulate_grad_hooks for param in model.parameters())
    assert not any(param._backward_hooks for param in model.parameters())
    assert not hasattr(optimizer, "_step_supports_amp_scaling")
    assert all(param.grad is None for param in model.parameters())
    model.zero_grad()
    train(plain, reference, 2)
    for step in range(2, 5):
        for one, its in ((model, optimizer), (plain, reference)):
            one.zero_grad()
            backward(one, step, 1)
            assert one.up.weight.grad is not None
            its.step()
    assert same(snapshot(model, optimizer), snapshot(plain, reference))
    fused_backward(model, optimizer)


def test_a_handle_goes_with_its_optimizer() -> None:
    model = Zoo()
    optimizer = GaLoreAdamW(model.parameters(), rank=4)
    handle = weakref.ref(fused_backward(model, optimizer)._taker)
    backward(model, 0, 1)
    assert taken(model)
    del optimizer
    gc.collect()
    assert handle() is None
    model.zero_grad()
    backward(model, 0, 1)
    assert model.up.weight.grad is not None


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_train_ordinarily(how: str) -> None:
    model, plain = Zoo(), Zoo()
    optimizer, reference = GaLoreAdamW(model.parameters(), rank=4), GaLoreAdamW(plain.parameters(), rank=4)
    fused_backward(model, optimizer)
    train(model, optimizer, 2)
    train(plain, reference, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pair = (model, optimizer)
        twin, copied = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    for one, its in ((twin, copied), (plain, reference)):
        one.zero_grad()
        backward(one, 2, 1)
        assert one.up.weight.grad is not None
        its.step()
    assert same(snapshot(twin, copied), snapshot(plain, reference))


def test_parameters_elsewhere_frozen_and_late() -> None:
    model, plain = Zoo(), Zoo()
    pairs = []
    for one in (model, plain):
        one.conv.requires_grad_(False)
        outside = nn.Parameter(torch.ones(6, 8))
        mine = [p for name, p in one.named_parameters() if not name.startswith(("up", "down"))]
        optimizer = GaLoreAdamW([*mine, outside], rank=4, update_proj_gap=3)
        pairs.append((one, optimizer, outside))
    fused_backward(model, pairs[0][1])
    for step in range(6):
        for one, optimizer, outside in pairs:
            one.zero_grad()
            outside.grad = None
            if step == 2:
                one.conv.requires_grad_(True)
            if step == 3:
                optimizer.add_param_group({"params": [one.up.weight]})
            (loss_of(one, step) + (outside**2).sum()).backward()
            assert one.down.weight.grad is not None  # the optimizer does not have it
            if one is model and step > 3:
                assert model.up.weight.grad is None and model.conv.weight.grad is None
            optimizer.step()
    assert same(snapshot(*pairs[0][:2]), snapshot(*pairs[1][:2]))
    assert same(pairs[0][2], pairs[1][2])


def test_a_search_that_becomes_due_after_backward_comes_in_the_next_step() -> None:
    """Of the gradient only its part in the subspace is left, in which there is nothing to look for."""
    model = Zoo()
    optimizer = GaLoreAdamW(model.parameters(), rank=4, update_proj_gap=100)
    fused_backward(model, optimizer)
    train(model, optimizer, 2)
    refreshes = []
    for step in (2, 3):
        backward(model, step, 1)
        optimizer.param_groups[0]["update_proj_gap"] = 1
        optimizer.step()
        refreshes.append(optimizer.state[model.up.weight]["proj.refreshes"])
        assert all(bool(param.isfinite().all()) for param in model.parameters())
    assert refreshes == [1, 2]

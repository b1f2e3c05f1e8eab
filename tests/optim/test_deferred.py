"""The path of an accelerator, whose verdicts the host does not wait for: run on the CPU by saying it is one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from lowrank_core.optim import devices
from optim_cases import CASES, Case, Zoo, backward, every_optimizer_on_devices, same, snapshot, train

BAD = {2, 3, 5, 9, 10}  # batches with a gradient that is not finite; refreshes come at every third good one


@pytest.fixture(autouse=True)
def deferred(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "deferred", lambda device: True)


@contextmanager
def no_reading() -> Iterator[None]:
    """Any number read from a tensor, which would make the host wait, is an error."""
    names = ("item", "__bool__", "__int__", "__float__", "__index__", "tolist", "numpy", "cpu")
    kept = {name: getattr(torch.Tensor, name) for name in names}

    def refuse(name: str) -> Callable[..., None]:
        def reading(*_: object) -> None:
            raise AssertionError(f"the step read a tensor by {name}")

        return reading

    for name in names:
        setattr(torch.Tensor, name, refuse(name))
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(torch.Tensor, name, method)


@every_optimizer_on_devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_skipped_steps_leave_no_trace(case: Case, dtype: torch.dtype) -> None:
    model, clean = Zoo(dtype), Zoo(dtype)
    optimizer, reference = (
        case.make(model.parameters(), weight_decay=0.1),
        case.make(clean.parameters(), weight_decay=0.1),
    )
    for number in range(14):
        backward(model, number)
        if number in BAD:
            model.down.bias.grad[3] = torch.inf
        else:
            train(clean, reference, [number])
        optimizer.step()
        assert same(snapshot(model, optimizer), snapshot(clean, reference))
    assert (optimizer.skipped_steps, reference.skipped_steps) == (len(BAD), 0)


@every_optimizer_on_devices
def test_steps_between_refreshes_read_nothing(case: Case) -> None:
    model = Zoo()
    optimizer = case.make(model.parameters(), update_proj_gap=5)
    train(model, optimizer, range(2))
    for number in range(2, 5):
        backward(model, number)
        if number == 3:
            model.gain.grad.fill_(torch.nan)
        with no_reading():
            optimizer.step()
    assert optimizer.skipped_steps == 1
    assert int(optimizer.state[model.gain]["step"]) == 4
    train(model, optimizer, range(5, 7))
    counted = case.searches or any("proj.captured" in state for state in optimizer.state.values())
    looked = 5 if counted else 0  # the sixth step's, also where every step chooses and counts that
    assert {p.last_refresh_step for p in optimizer.projections()} == {looked, None}  # `unused` has none


@every_optimizer_on_devices
def test_it_equals_the_path_of_the_host(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [Zoo(torch.float64), Zoo(torch.float64)]
    optimizers = [case.make(model.parameters(), moment_dtype="float32") for model in models]  # codes are for the host
    for number in range(8):
        for model, optimizer, there in zip(models, optimizers, (True, False), strict=True):
            monkeypatch.setattr(devices, "deferred", lambda device, there=there: there)
            backward(model, number)
            for one, other in zip(model.parameters(), models[0].parameters(), strict=True):
                one.grad = copy.deepcopy(other.grad)  # or the trajectories would part through the gradients
            optimizer.step()
    for one, other in zip(*(model.state_dict().values() for model in models), strict=True):
        # 8 steps, each of which rounds its update (of at most the weight's size) and the weight a few times: 4 + 4 u.
        assert bool(((one - other).abs() <= 8 * 8 * 2.0**-53 * other.norm()).all())


def test_a_resumed_run_counts_exactly() -> None:
    model = Zoo()
    optimizer = CASES[0].make(model.parameters())
    for number in range(8):
        backward(model, number)
        if number in BAD:
            model.gain.grad.fill_(torch.nan)
        optimizer.step()
    twin = copy.deepcopy(model)
    other = CASES[0].make(twin.parameters())
    other.load_state_dict(optimizer.state_dict())
    train(model, optimizer, range(8, 14))
    train(twin, other, range(8, 14))
    assert same(snapshot(model, optimizer), snapshot(twin, other))


def test_raising_waits() -> None:
    model = Zoo()
    optimizer = CASES[0].make(model.named_parameters(), nonfinite="raise")
    train(model, optimizer, range(2))
    backward(model, 2)
    model.gain.grad.fill_(torch.nan)
    before = snapshot(model, optimizer)
    with pytest.raises(RuntimeError, match="step: the gradient of `gain`"):
        optimizer.step()
    assert same(before, snapshot(model, optimizer))


def test_the_verdict_on_the_device_is_exact() -> None:
    large = torch.full((4,), 3e38)
    assert bool(devices.all_finite([large, torch.empty(0), torch.tensor(1.0)]))
    for value in (torch.nan, torch.inf, -torch.inf):
        assert not bool(devices.all_finite([large, torch.tensor([0.0, value])]))
    assert bool(devices.all_finite([torch.empty(0)]))


@every_optimizer_on_devices
def test_a_rate_on_the_device_is_not_read(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """And does what the same number does."""
    models = [Zoo(torch.float64), Zoo(torch.float64)]
    rates = (torch.tensor(case.lr, dtype=torch.float64), case.lr)
    optimizers = [
        case.make(model.parameters(), lr=lr, update_proj_gap=100, weight_decay=0.1)
        for model, lr in zip(models, rates, strict=True)
    ]
    for number in range(6):
        for model, optimizer in zip(models, optimizers, strict=True):
            backward(model, number)
            for one, other in zip(model.parameters(), models[0].parameters(), strict=True):
                one.grad = copy.deepcopy(other.grad)
            if number:
                with no_reading():
                    optimizer.step()
            else:
                optimizer.step()
    for one, other in zip(*(model.state_dict().values() for model in models), strict=True):
        assert bool(((one - other).abs() <= 6 * 8 * 2.0**-53 * other.norm()).all())  # as above, of 6 steps
    optimizers[0].param_groups[0]["lr"].fill_(0.0)  # a schedule writes into it
    before = snapshot(models[0], optimizers[0])[0]
    train(models[0], optimizers[0], [6])
    assert same(before, dict(models[0].state_dict()))

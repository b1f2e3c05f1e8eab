"""The contract that every optimizer of the package keeps while it trains: one table, every row through every test."""

from __future__ import annotations

import copy

import pytest
import torch
from optim_cases import (
    Case,
    Zoo,
    backward,
    draw,
    every_dtype,
    every_optimizer,
    loss_of,
    plain_on_purpose,
    same,
    snapshot,
    train,
)
from torch import Tensor, nn


@every_optimizer
@every_dtype
def test_loss_falls(case: Case, dtype: torch.dtype) -> None:
    model = Zoo(dtype)
    losses = train(model, case.make(model.parameters()), range(60))
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


@every_optimizer
def test_every_weight_with_a_gradient_moves(case: Case) -> None:  # trap T3
    model = Zoo()
    before = copy.deepcopy(model)
    optimizer = case.make(model.named_parameters())
    train(model, optimizer, range(2))
    for (name, old), new in zip(before.named_parameters(), model.parameters(), strict=True):
        moved = not torch.equal(old, new)
        assert moved == (name not in ("unused", "empty")), name
    projected = {row.name for row in optimizer.plan() if row.projected}
    assert projected == {"embed.weight", "conv.weight", "up.weight", "down.weight", "square.weight", "unused"}


@every_optimizer
@plain_on_purpose
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("keys", [{}, {"weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-5}, {"maximize": True}])
def test_full_rank_is_torch_adamw_to_the_bit(case: Case, dtype: torch.dtype, keys: dict) -> None:
    ours, theirs = Zoo(dtype), Zoo(dtype)
    given = case.adamw(keys)
    optimizer = case.make(ours.parameters(), plain_moment_dtype="float32", **case.plain, **given)
    keys = {key: value for key, value in keys.items() if key in given or key == "betas"}
    reference = torch.optim.AdamW(theirs.parameters(), lr=case.lr, **{**case.betas, "weight_decay": 0.0, **keys})
    train(ours, optimizer, range(10))
    train(theirs, reference, range(10))
    assert same(dict(ours.state_dict()), dict(theirs.state_dict()))
    assert not any(row.projected for row in optimizer.plan())


@every_optimizer
@plain_on_purpose
def test_full_rank_in_half_precision_rounds_once(case: Case) -> None:
    model, exact = Zoo(torch.bfloat16), Zoo(torch.bfloat16).float()
    optimizer = case.make(model.parameters(), weight_decay=0.1, rounding="nearest", **case.plain)
    reference = torch.optim.AdamW(exact.parameters(), lr=case.lr, weight_decay=0.1, **case.betas)
    backward(model, 0)
    for ours, theirs in zip(model.parameters(), exact.parameters(), strict=True):
        theirs.grad = None if ours.grad is None else ours.grad.float()
    optimizer.step()
    reference.step()
    assert same([p.detach() for p in model.parameters()], [p.detach().bfloat16() for p in exact.parameters()])


@every_optimizer
def test_groups_have_their_own_lr(case: Case) -> None:
    if case.by_group:
        pytest.skip("which matrices are at work is drawn among those of a group")
    model, twin, start = Zoo(), Zoo(), Zoo()
    lrs = {"up.weight": 0.0, "down.weight": case.lr / 1000}
    named = list(model.named_parameters())
    train(model, case.make([{"params": [pair], "lr": lrs.get(pair[0], case.lr)} for pair in named]), [0])
    train(twin, case.make(twin.named_parameters()), [0])
    for (name, one), other, old in zip(named, twin.parameters(), start.parameters(), strict=True):
        if name in lrs:
            assert (one - old).norm() < 0.01 * (other - old).norm()
            assert torch.equal(one, old) == (lrs[name] == 0)
        else:
            assert torch.equal(one, other)


@every_optimizer
def test_an_unused_parameter_is_left_alone(case: Case) -> None:
    model = Zoo()
    optimizer = case.make(model.parameters(), weight_decay=0.5)
    train(model, optimizer, range(3))
    assert model.unused not in optimizer.state
    assert torch.equal(model.unused, Zoo().unused)
    model.up.weight.requires_grad_(False)
    train(model, optimizer, range(3, 5))
    steps = {name: int(optimizer.state[p]["step"]) for name, p in model.named_parameters() if p in optimizer.state}
    assert steps.pop("up.weight") == 3
    assert set(steps.values()) == {5}


@every_optimizer
def test_a_parameter_does_not_depend_on_the_others(case: Case) -> None:
    alone, together = Zoo(), Zoo()
    one, other = case.make(alone.parameters()), case.make(together.parameters())
    for number in range(5):
        backward(alone, number)
        backward(together, number)
        for left, right in zip(alone.parameters(), together.parameters(), strict=True):
            left.grad = copy.deepcopy(right.grad) if left is alone.down.weight else None
        one.step()
        other.step()
    assert same(alone.down.weight, together.down.weight)
    assert same(one.state[alone.down.weight], other.state[together.down.weight])


@every_optimizer
@every_dtype
def test_gradients_are_left_untouched(case: Case, dtype: torch.dtype) -> None:
    model = Zoo(dtype)
    optimizer = case.make(model.parameters(), maximize=True)
    for number in range(4):
        backward(model, number)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        grads = [p.grad for p in model.parameters()]
        before = copy.deepcopy(grads)
        optimizer.step()
        assert all(p.grad is grad for p, grad in zip(model.parameters(), grads, strict=True))
        assert same([g for g in grads if g is not None], [g for g in before if g is not None])


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_maximize_is_the_step_of_the_negated_gradient(case: Case, dtype: torch.dtype) -> None:
    """To the bit, over a refresh."""
    up, down = Zoo(dtype), Zoo(dtype)
    ascent, descent = case.make(up.parameters(), maximize=True), case.make(down.parameters())
    for number in range(5):
        backward(up, number)
        for p, q in zip(up.parameters(), down.parameters(), strict=True):
            q.grad = None if p.grad is None else -p.grad
        ascent.step()
        descent.step()
        assert same(dict(up.state_dict()), dict(down.state_dict()))


@every_optimizer
def test_accumulation_is_a_step_with_the_sum(case: Case) -> None:
    model, twin = Zoo(), Zoo()
    optimizer, other = case.make(model.parameters()), case.make(twin.parameters())
    for number in range(4):
        model.zero_grad()
        for micro in (2 * number, 2 * number + 1):
            (loss_of(model, micro) / 2).backward()
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            q.grad = copy.deepcopy(p.grad)
        optimizer.step()
        other.step()
    assert same(snapshot(model, optimizer), snapshot(twin, other))


@every_optimizer
def test_grad_scaler(case: Case) -> None:
    model, plain = Zoo(), Zoo()
    optimizer, reference = case.make(model.parameters()), case.make(plain.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    for number in range(5):
        model.zero_grad()
        scaler.scale(loss_of(model, number)).backward()
        if number == 2:
            model.up.weight.grad[0, 0] = torch.inf
        before = snapshot(model, optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert same(before, snapshot(model, optimizer)) == (number == 2)
    assert scaler.get_scale() == 2.0**9
    assert optimizer.skipped_steps == 0  # the scaler has not even called
    train(plain, reference, [0, 1, 3, 4])
    assert same(snapshot(model, optimizer), snapshot(plain, reference))  # powers of two scale exactly


@every_optimizer
@every_dtype
def test_two_runs_have_the_same_bits_and_draw_nothing(case: Case, dtype: torch.dtype) -> None:  # trap T11
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.random.get_rng_state()
        model = Zoo(dtype)
        optimizer = case.make(model.parameters())
        train(model, optimizer, range(7))
        runs.append(snapshot(model, optimizer))
        assert torch.equal(state, torch.random.get_rng_state())
    assert same(*runs)


@every_optimizer
def test_the_number_of_threads_does_not_show(case: Case) -> None:
    if case.keys.get("projector") == "svd":
        pytest.skip("LAPACK's bits depend on the number of threads")
    runs = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        weights = [nn.Parameter(draw(*shape)) for shape in ((300, 257), (128, 300), (70_000,))]
        optimizer = case.make(weights, rank=16, weight_decay=0.1)
        for seed in range(1, 5):
            for weight in weights:
                weight.grad = draw(*weight.shape, seed=seed)
            optimizer.step()
        runs.append([weights, optimizer.state_dict()])
    torch.set_num_threads(1)
    assert same(runs[0], runs[1]) and same(runs[0], runs[2])


@every_optimizer
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("at", ["first step", "within a period", "at a refresh"])
def test_a_nonfinite_gradient_changes_nothing(case: Case, value: float, at: str) -> None:
    model, clean = Zoo(), Zoo()
    optimizer, reference = case.make(model.parameters()), case.make(clean.parameters())
    bad = {"first step": 0, "within a period": 2, "at a refresh": 3}[at]
    for number in range(5):
        if number == bad:
            backward(model, 99)
            model.square.weight.grad[-1, -1] = value
            before = snapshot(model, optimizer)
            optimizer.step()
            assert same(before, snapshot(model, optimizer))
            assert optimizer.skipped_steps == 1
        train(model, optimizer, [number])
        train(clean, reference, [number])
    assert same(snapshot(model, optimizer), snapshot(clean, reference))
    assert reference.skipped_steps == 0


@every_optimizer
def test_a_nonfinite_gradient_can_raise(case: Case) -> None:
    model = Zoo()
    optimizer = case.make(model.named_parameters(), nonfinite="raise")
    train(model, optimizer, range(3))
    backward(model, 3)
    model.conv.weight.grad[0, 0, 0] = torch.nan
    before = snapshot(model, optimizer)
    with pytest.raises(RuntimeError, match=r"step: the gradient of `conv.weight` \(12, 12, 3\) must be finite"):
        optimizer.step()
    assert same(before, snapshot(model, optimizer))


@every_optimizer
def test_large_finite_gradients_are_finite(case: Case) -> None:
    model = Zoo()
    optimizer = case.make(model.parameters())
    backward(model, 0)
    model.gain.grad.fill_(3e38)
    model.up.bias.grad.fill_(3e38)  # their sum overflows
    optimizer.step()
    assert optimizer.skipped_steps == 0


@every_optimizer
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_lr_schedulers(case: Case, tensor_lr: bool) -> None:
    model, manual = Zoo(), Zoo()
    lr = torch.tensor(case.lr, dtype=torch.float64) if tensor_lr else case.lr
    optimizer, other = case.make(model.parameters(), lr=lr), case.make(manual.parameters())
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for number in range(5):
        train(model, optimizer, [number])
        scheduler.step()
        other.param_groups[0]["lr"] = case.lr * 0.5**number
        train(manual, other, [number])
    assert float(optimizer.param_groups[0]["lr"]) == case.lr / 32
    assert same(dict(model.state_dict()), dict(manual.state_dict()))


@every_optimizer
def test_closure(case: Case) -> None:
    model, twin = Zoo(), Zoo()
    optimizer, other = case.make(model.parameters()), case.make(twin.parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == train(twin, other, [0])[0]
    assert optimizer.step() is None
    other.step()
    assert same(snapshot(model, optimizer), snapshot(twin, other))

"""Clipping by `fused_backward`: which norm, how well it is known, and what is scaled by it."""

from __future__ import annotations

import math

import pytest
import torch
from layerwise_runs import apart, backward, every_accumulating, shake, train
from lowrank_core.memory.gradients import SKETCH_COLUMNS
from lowrank_core.optim import GaLoreAdamW, fused_backward
from lowrank_core.optim.layerwise.norms import squared_norm
from optim_cases import Case, Zoo, draw
from torch import nn

MAX = 0.5  # below every norm of these runs


def clipped(model: nn.Module, norms: list[float]) -> None:
    norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), MAX)))


@every_accumulating
def test_one_backward_per_step_clips_by_the_exact_norm(case: Case) -> None:
    if case.keys.get("moment_dtype", "auto") != "auto":
        pytest.skip("its moments are rounded at random: next to a boundary a rounding of the gradient is a whole code")
    models = [Zoo() for _ in range(5)]
    optimizers = [case.make(model.parameters()) for model in models]
    model, plain, *shaken = models
    handle = fused_backward(model, optimizers[0], max_norm=MAX)
    found: list[tuple[float | None, float | None]] = []
    norms: list[float] = []
    for step in range(8):
        train_one(model, optimizers[0], step)
        found.append((handle.last_norm, handle.norm_error))
    train(plain, optimizers[1], 8, between=lambda step: clipped(plain, norms))
    moved = []
    for seed, (other, optimizer) in enumerate(zip(shaken, optimizers[2:], strict=True)):

        def disturb(step: int, one: nn.Module = other, seed: int = seed) -> None:
            clipped(one, [])
            shake(one, 10 * seed + step, 1)

        train(other, optimizer, 8, between=disturb)
        moved.append(apart(other, plain))
    count = sum(param.numel() for param in model.parameters())
    assert norms[0] > MAX
    assert abs(found[0][0] - norms[0]) <= count * 2.0**-24 * norms[0]
    assert [error for _, error in found] == [0.0] * 8
    assert apart(model, plain) <= max(moved)


def train_one(model: nn.Module, optimizer: torch.optim.Optimizer, step: int, passes: int = 1) -> None:
    backward(model, step, passes)
    optimizer.step()


def layers(count: int, rows: int, cols: int) -> nn.ParameterList:
    return nn.ParameterList([nn.Parameter(draw(rows, cols, seed=i)) for i in range(count)])


def gradients(model: nn.ParameterList, number: int, ranks: int) -> list[torch.Tensor]:
    """Of different sizes, and of few dimensions."""
    found = []
    for i, weight in enumerate(model):
        left, right = (draw(side, ranks, seed=100 * number + 7 * i + j) for j, side in enumerate(weight.shape))
        found.append((left @ right.mT) * 2.0 ** (number % 3))
    return found


def send(model: nn.ParameterList, grads: list[torch.Tensor]) -> None:
    sum((weight * grad).sum() for weight, grad in zip(model, grads, strict=True)).backward()


@pytest.mark.parametrize("side", ["left", "right", "full"])
@pytest.mark.parametrize("passes", [2, 5])
def test_the_norm_of_a_sum_is_estimated_within_its_error(side: str, passes: int) -> None:
    """Each step draws another sketch: errors in units of the stated one have mean 0 and mean square 1."""
    model = layers(3, 40, 60)
    optimizer = GaLoreAdamW(model, lr=1e-6, rank=5, update_proj_gap=10_000, proj_type=side)
    handle = fused_backward(model, optimizer, max_norm=math.inf)
    send(model, gradients(model, 0, 12))
    optimizer.step()
    assert handle.norm_error == 0
    count, scores, errors = 200, [], []
    for step in range(1, count + 1):
        passing = [gradients(model, 10 * step + number, 12) for number in range(passes)]
        for grads in passing:
            send(model, grads)
        optimizer.step()
        exact = math.sqrt(sum(float(sum(parts).double().square().sum()) for parts in zip(*passing, strict=True)))
        scores.append((handle.last_norm / exact - 1) / handle.norm_error)
        errors.append(handle.norm_error)
    assert 0 < max(errors) < 1 / math.sqrt(SKETCH_COLUMNS)
    assert abs(sum(scores) / count) <= 4 / math.sqrt(count)
    # Of Student's t with 45 degrees of freedom and more, whose fourth moment is below 4.
    assert abs(sum(score**2 for score in scores) / count - 1) <= 4 * math.sqrt(3 / count) + 2 / SKETCH_COLUMNS


def test_what_the_subspace_holds_counts_exactly() -> None:
    """Gradients within the subspaces: the sketch has nothing to estimate."""
    model = layers(2, 30, 20)
    optimizer = GaLoreAdamW(model, lr=1e-6, rank=4, update_proj_gap=100)
    handle = fused_backward(model, optimizer, max_norm=math.inf)
    send(model, gradients(model, 0, 3))
    optimizer.step()
    total = 0.0
    inside = []
    for number, weight in enumerate(model):
        basis = optimizer.state[weight]["proj.basis"]
        inside.append(draw(30, 4, seed=50 + number) @ basis.mT)
        total += float((3 * inside[-1].double()).square().sum())
    for factor in (1.0, 2.0):
        send(model, [factor * grad for grad in inside])
    optimizer.step()
    rounding = 30 * 20 * 2.0**-24
    assert abs(handle.last_norm - math.sqrt(total)) <= rounding * math.sqrt(total)
    assert handle.norm_error <= rounding


def test_the_estimate_scales_what_is_held() -> None:
    model, plain = layers(2, 30, 20), layers(2, 30, 20)
    optimizer, reference = (GaLoreAdamW(one, rank=4, update_proj_gap=100, eps=1.0) for one in (model, plain))
    handle = fused_backward(model, optimizer, max_norm=1.0)
    other = fused_backward(plain, reference)
    for one, its in ((model, optimizer), (plain, reference)):
        send(one, [grad / 1000 for grad in gradients(one, 0, 12)])
        its.step()
    factor = 1.0 / (handle.last_norm + 1e-6) if handle.last_norm > 1 else 1.0
    assert other.last_norm is None and other.norm_error is None and factor == 1.0
    start = [weight.detach().clone() for weight in model]
    passing = [gradients(model, number, 12) for number in (1, 2)]
    for grads in passing:
        send(model, grads)
    optimizer.step()
    factor = 1.0 / (handle.last_norm + 1e-6)
    assert factor < 0.01
    for grads in passing:
        send(plain, [grad * factor for grad in grads])
    reference.step()
    for weight, same, before in zip(model, plain, start, strict=True):
        change = (same - before).norm()
        assert (weight - same).norm() <= 100 * 2.0**-24 * (change + before.norm())


@every_accumulating
@pytest.mark.parametrize("passes", [1, 3])
def test_projected_clips_by_what_is_applied(case: Case, passes: int) -> None:
    """The norm of the low-rank gradients, and of the others as they are: also at a refresh, in the new subspaces."""
    model, watched = Zoo(), Zoo()
    optimizer, watcher = case.make(model.parameters()), case.make(watched.parameters())
    handle = fused_backward(model, optimizer, max_norm=MAX, clip="projected")
    for step in range(7):
        watcher.load_state_dict(optimizer.state_dict())
        watched.load_state_dict(model.state_dict())
        for one in (model, watched):
            one.zero_grad()
            backward(one, step, passes)
        grads = {param: param.grad for param in watched.parameters() if param.grad is not None}
        watcher.step()
        expected = 0.0
        for _, _, slot in watcher._slots():
            if (grad := grads.get(slot.param)) is not None:
                matrix = slot.gradient(grad)
                if slot.geometry is not None:
                    projector = watcher.parts(watcher.param_groups[0], slot.weight).projector
                    if not projector.each_step:  # what chooses from the whole gradient is clipped by it
                        matrix = projector.held(slot, watcher.state[slot.param]).down(matrix)
                expected += float(matrix.double().square().sum())
        optimizer.step()
        count = sum(param.numel() for param in model.parameters())
        assert abs(handle.last_norm - math.sqrt(expected)) <= passes * count * 2.0**-24 * math.sqrt(expected)
        assert handle.norm_error == 0


def test_projected_scales_what_is_applied() -> None:
    model, plain = layers(2, 30, 20), layers(2, 30, 20)
    optimizer, reference = (GaLoreAdamW(one, rank=4, update_proj_gap=2, eps=1.0) for one in (model, plain))
    handle = fused_backward(model, optimizer, max_norm=0.25, clip="projected")
    for step in range(5):
        start = [weight.detach().clone() for weight in model]
        grads = gradients(model, step, 12)
        send(model, grads)
        optimizer.step()
        factor = 0.25 / (handle.last_norm + 1e-6)
        assert factor < 0.1
        plain.zero_grad()
        send(plain, [grad * factor for grad in grads])
        reference.step()
        for weight, same, before in zip(model, plain, start, strict=True):
            assert (weight - same).norm() <= (step + 1) * 100 * 2.0**-24 * before.norm()


def test_the_norm_may_be_measured_alone() -> None:
    model, plain = Zoo(), Zoo()
    optimizer, reference = GaLoreAdamW(model.parameters(), rank=4), GaLoreAdamW(plain.parameters(), rank=4)
    handle = fused_backward(model, optimizer, max_norm=math.inf)
    assert handle.last_norm is None and handle.norm_error is None
    assert train(model, optimizer, 4) == train(plain, reference, 4)
    assert handle.last_norm > 0


def test_a_squared_norm_has_the_same_bits_for_any_number_of_threads() -> None:
    tensors = [
        draw(300, 257),
        draw(70_000),
        draw(50_000, 1),
        draw(1, 70_000),
        draw(3, 5, 7),
        draw(0, 4),
        torch.tensor(2.0),
    ]
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append([squared_norm(tensor) for tensor in tensors])
    torch.set_num_threads(1)
    assert found[0] == found[1]
    for tensor, square in zip(tensors, found[0], strict=True):
        exact = float(tensor.double().square().sum())
        assert abs(float(square) - exact) <= tensor.numel() * 2.0**-53 * exact

"""Flora's accumulation in compressed form: `fused_backward(..., compressed=True)`."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from layerwise_runs import apart, backward, taken, train
from lowrank_core.optim import FloraAdamW, GaLoreAdamW, fused_backward
from optim_cases import Zoo, draw, loss_of, same, snapshot
from plain_steps import projection
from test_flora import U32, Plain, zeros
from testing.gradients import bytes_held
from torch import Tensor, nn

CYCLE = 0xF1  # written down a second time: a run that is resumed by another version draws the same
LINES = 5  # of the sketches of `three`


def flora(params: Any, **keys: Any) -> FloraAdamW:
    return FloraAdamW(params, **{"lr": 0.02, "rank": 4, "kappa": 3, "betas": (0.5, 0.999), **keys})


def three() -> nn.ParameterList:
    return nn.ParameterList([nn.Parameter(draw(40, 60, seed=i)) for i in range(3)])


def gradients(number: int) -> list[Tensor]:
    """For `three`, of few dimensions."""
    return [draw(40, 6, seed=9 * number + i) @ draw(6, 60, seed=-9 * number - i) for i in range(3)]


def send(model: nn.ParameterList, grads: list[Tensor]) -> None:
    sum((weight * grad).sum() for weight, grad in zip(model, grads, strict=True)).backward()


@pytest.mark.parametrize(
    ("shape", "proj_type", "left"), [((12, 20), "std", True), ((20, 12), "std", False), ((12, 20), "right", False)]
)
def test_the_formulas(shape: tuple[int, int], proj_type: str, left: bool) -> None:
    """In float64: P P^T of the sum, P drawn by seed, place and step, is what Flora's step takes for the gradient."""
    keys = {"lr": 0.05, "betas": (0.6, 0.9), "eps": 1e-4, "weight_decay": 0.02, "rank": 3, "kappa": 7, "seed": 11}
    weight = nn.Parameter(draw(*shape).double())
    plain = Plain((weight if left else weight.mT).detach().numpy().copy())
    optimizer = FloraAdamW([zeros(4, 9), weight], **keys, proj_type=proj_type)
    fused_backward(nn.ParameterList([weight]), optimizer, compressed=True)
    for step in range(20):
        grads = [draw(*shape, seed=10 * step + number).double() for number in range(3)]
        for grad in grads:
            send([weight], [grad])
        optimizer.step()
        basis = projection(len(plain.weight), 3, 11, 1, step, CYCLE)
        plain.step(basis @ (basis.T @ (sum(grads) if left else sum(grads).mT).numpy()))
        # As in test_flora.py: the means are float32.
        off = (weight if left else weight.mT).detach() - torch.from_numpy(plain.weight)
        assert off.norm() <= 2**4 * U32 * plain.path, f"step {step}"


@pytest.mark.parametrize("passes", [2, 4])
def test_several_backward_passes_are_one_with_the_whole_batch(passes: int) -> None:
    """To rounding: no farther apart than runs whose gradients are off by what rounding may do."""
    runs = []
    for seed in range(5):
        model = Zoo()
        optimizer = flora(model.parameters())
        fused_backward(model, optimizer, compressed=True)
        if seed > 1:
            disturb(model, seed, passes)
        if seed == 0:
            losses = train(model, optimizer, 8, passes)
        else:
            whole = train(model, optimizer, 8, 1, micro=lambda one, step: mean_loss(one, step, passes))
        runs.append((model, losses if seed == 0 else whole))
    moved = max(apart(model, runs[1][0]) for model, _ in runs[2:])
    assert apart(runs[0][0], runs[1][0]) <= moved < 2.0**-8
    assert max(abs(a - b) for a, b in zip(runs[0][1], runs[1][1], strict=True)) <= moved * losses[0]


def mean_loss(model: nn.Module, step: int, passes: int) -> Tensor:
    return sum(loss_of(model, number) for number in range(passes * step, passes * (step + 1))) / passes


def disturb(model: nn.Module, seed: int, passes: int) -> None:
    """Adds to each gradient, as it comes, a rounding for each addition, with signs drawn by `seed`."""
    for i, param in enumerate(model.parameters()):
        size = (passes + max(param.shape, default=1)) * U32
        signs = torch.sign(draw(param.numel(), seed=1000 * seed + i)).view(param.shape)
        param.register_hook(lambda grad, s=size, d=signs: grad + s * d * (grad.abs().max() if grad.numel() else 0))


def test_only_sketches_are_held() -> None:
    model = Zoo()
    del model.unused
    optimizer = flora(model.parameters())
    handle = fused_backward(model, optimizer, max_norm=1.0, compressed=True)
    plan = handle.plan()
    for step in range(5):  # searches are among them: they need no more
        backward(model, step, 2)
        assert taken(model) and bytes_held(optimizer) == plan.held == plan.due
        optimizer.step()
    # 4 columns of a matrix [m, n], on its longer side; what is not projected is held whole.
    assert plan.held == 4 * (4 * (16 + 36 + 20 + 20 + 12) + 12 + 20 + 12 + 1)
    assert plan.held < plan.ordinary / 2


def test_it_resumes_to_the_bit_and_copies_draw_alike() -> None:
    model = Zoo()
    optimizer = flora(model.parameters())
    fused_backward(model, optimizer, max_norm=0.5, compressed=True)
    train(model, optimizer, 4, 3)
    again = copy.deepcopy(model)
    other = flora(again.parameters())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    fused_backward(again, other, max_norm=0.5, compressed=True)
    for step in range(4, 9):
        for one, its in ((model, optimizer), (again, other)):
            backward(one, step, 3)
            its.step()
    assert same(snapshot(model, optimizer), snapshot(again, other))


def test_maximize_and_what_is_no_part_of_the_model() -> None:
    """Bits: a sketch of -G is that of G, negated; a gradient that is found in `.grad` becomes a sketch, too."""
    runs = []
    for sign in (1, -1):
        inside, outside = zeros(12, 20), zeros(20, 12)
        optimizer = flora([inside, outside], maximize=sign < 0)
        fused_backward(nn.ParameterList([inside]), optimizer, compressed=True)
        for step in range(5):
            send([inside], [sign * draw(12, 20, seed=step).double()])
            outside.grad = sign * draw(20, 12, seed=step).double()
            optimizer.step()
        runs.append([inside.detach(), outside.detach(), [optimizer.state[w]["exp_avg"] for w in (inside, outside)]])
    assert same(*runs) and runs[0][1].any()


def test_one_backward_has_the_exact_norm_and_the_factor_of_torch() -> None:
    model, plain = three(), three()
    optimizer, reference = flora(model, eps=1.0), flora(plain, eps=1.0)
    handle = fused_backward(model, optimizer, max_norm=0.5, compressed=True)
    fused_backward(plain, reference, compressed=True)
    for step in range(4):
        grads = gradients(step)
        norm = math.sqrt(sum(float(grad.double().square().sum()) for grad in grads))
        send(model, grads)
        send(plain, [grad * (0.5 / (norm + 1e-6)) for grad in grads])
        optimizer.step()
        reference.step()
        assert abs(handle.last_norm / norm - 1) <= 60 * U32 and handle.norm_error == 0
        for one, other in zip(model, plain, strict=True):
            assert (one - other).norm() <= (step + 1) * 100 * U32 * other.norm()


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_norm_of_a_sum_is_estimated_within_its_error(side: str) -> None:
    """Each step draws another sketch: errors in units of the stated one have mean 0 and mean square 1."""
    model = three()
    optimizer = flora(model, lr=1e-6, rank=20, kappa=10_000, proj_type=side)
    handle = fused_backward(model, optimizer, max_norm=math.inf, compressed=True)
    count, scores = 200, []
    for step in range(count):
        passing = [gradients(10 * step + number) for number in range(3)]
        for grads in passing:
            send(model, grads)
        optimizer.step()
        exact = math.sqrt(sum(float(sum(parts).double().square().sum()) for parts in zip(*passing, strict=True)))
        scores.append((handle.last_norm / exact - 1) / handle.norm_error)
    assert abs(sum(scores) / count) <= 4 / math.sqrt(count)
    # Of Student's t with 57 degrees of freedom, whose fourth moment is below 4.
    assert abs(sum(score**2 for score in scores) / count - 1) <= 4 * math.sqrt(3 / count) + 2 / 20


def test_a_sketch_of_one_line_states_the_largest_error() -> None:
    weight = nn.Parameter(draw(12, 20))
    optimizer = flora([weight], rank=1)
    handle = fused_backward(nn.ParameterList([weight]), optimizer, max_norm=math.inf, compressed=True)
    for number in range(2):
        send([weight], [draw(12, 20, seed=number)])
    optimizer.step()
    assert abs(handle.norm_error - 1 / math.sqrt(2)) <= 2.0**-50


@pytest.mark.parametrize("passes", [1, 3])
def test_projected_clips_by_what_the_sketches_give_back(passes: int) -> None:
    model, plain = three(), three()
    optimizer, reference = (flora(one, rank=LINES, kappa=2, eps=1.0) for one in (model, plain))
    handle = fused_backward(model, optimizer, max_norm=0.25, clip="projected", compressed=True)
    fused_backward(plain, reference, compressed=True)
    for step in range(5):
        grads = [gradients(10 * step + number) for number in range(passes)]
        total = 0.0
        for place, parts in enumerate(zip(*grads, strict=True)):
            basis = projection(40, LINES, 0, place, step, CYCLE)
            total += float((torch.from_numpy(basis @ (basis.T @ sum(parts).double().numpy()))).square().sum())
        for some in grads:
            send(model, some)
            send(plain, [grad * (0.25 / (math.sqrt(total) + 1e-6)) for grad in some])
        optimizer.step()
        reference.step()
        assert abs(handle.last_norm / math.sqrt(total) - 1) <= passes * 60 * U32 and handle.norm_error == 0
        for one, other in zip(model, plain, strict=True):
            assert (one - other).norm() <= (step + 1) * 100 * U32 * other.norm()


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("at", [0, 2, 3])  # the first step, within a period, at a draw
@pytest.mark.parametrize("scaled", [False, True])
def test_a_nonfinite_gradient_skips_the_whole_step(passes: int, at: int, scaled: bool) -> None:
    """With and without a `GradScaler`, whose powers of two change no bit."""
    model, clean = Zoo(), Zoo()
    optimizer, reference = flora(model.parameters()), flora(clean.parameters())
    for one, its in ((model, optimizer), (clean, reference)):
        fused_backward(one, its, compressed=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**6, growth_interval=1000, enabled=scaled)
    for step in range(5):
        for bad in (True, False) if step == at else (False,):
            for number in range(passes):
                loss = loss_of(model, passes * step + number) / passes
                scaler.scale(loss * torch.inf if bad and number == 0 else loss).backward()
            before = copy.deepcopy([list(model.parameters()), list(optimizer.state.values())])
            scaler.step(optimizer)
            scaler.update()
            assert same(before, [list(model.parameters()), list(optimizer.state.values())]) == bad
        backward(clean, step, passes)
        reference.step()
    assert optimizer.skipped_steps == 1
    assert same(snapshot(model, optimizer), snapshot(clean, reference))


def test_it_can_raise_at_the_step() -> None:
    model = Zoo()
    optimizer = flora(model.named_parameters(), nonfinite="raise")
    fused_backward(model, optimizer, compressed=True)
    model.down.weight.register_hook(lambda grad: grad * torch.inf)
    backward(model, 0, 2)
    with pytest.raises(RuntimeError, match=r"step: the gradient of `down.weight` \(12, 20\) must be finite"):
        optimizer.step()
    assert not optimizer.state


def test_refusals() -> None:
    model = Zoo()
    for optimizer in (GaLoreAdamW(model.parameters(), rank=4), FloraAdamW(model.parameters(), rank=None)):
        name = type(optimizer).__name__
        with pytest.raises(ValueError, match=f"^fused_backward: `compressed` must be False for this {name}, got True"):
            fused_backward(model, optimizer, compressed=True)
    with pytest.raises(ValueError, match=r"^fused_backward: `compressed` must be False beside at_once=True, got True"):
        fused_backward(model, flora(model.parameters(), nonfinite="raise"), at_once=True, compressed=True)
    with pytest.raises(ValueError, match=r"^fused_backward: `compressed` must be True or False, got 'yes'$"):
        fused_backward(model, flora(model.parameters()), compressed="yes")
    optimizer = flora(model.parameters(), nonfinite="raise")
    fused_backward(model, optimizer)
    backward(model, 0, 1)
    with pytest.raises(RuntimeError, match=r"another; use .*, or pass `compressed=True` to it$"):
        backward(model, 1, 1)

"""`fused_backward`: the same training, with gradients that are let go of inside backward."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from layerwise_runs import (
    apart,
    backward,
    every_accumulating,
    every_stepping_inside,
    keys,
    shake,
    steps_inside,
    taken,
    train,
    way,
)
from lowrank_core.memory.gradients import Way
from lowrank_core.optim import GaLoreAdamW, fused_backward
from optim_cases import CASES, Case, Zoo, composed, draw, every_dtype, every_optimizer, loss_of, same, snapshot
from torch import Tensor, nn


def now(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[list[Tensor], list[dict]]:
    """Weights and states, while gradients are held."""
    return [param.detach() for param in model.parameters()], list(optimizer.state.values())


@every_optimizer
@every_dtype
def test_one_backward_per_step_has_the_bits_of_ordinary_training(case: Case, dtype: torch.dtype) -> None:
    model, plain = Zoo(dtype), Zoo(dtype)
    optimizer, reference = (case.make(one.named_parameters(), weight_decay=0.1, **keys(case)) for one in (model, plain))
    fused_backward(model, optimizer)
    seen = []
    losses = train(model, optimizer, 8, between=lambda _: seen.append(taken(model)))
    assert seen == [True] * 8
    assert losses == train(plain, reference, 8)
    assert same(snapshot(model, optimizer), snapshot(plain, reference))


@every_accumulating
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("path", ["kernel", "composed"])
def test_several_backward_passes_are_one_step_with_their_sum(case: Case, dtype: torch.dtype, path: str) -> None:
    if case.keys.get("moment_dtype", "auto") != "auto":
        pytest.skip("its moments are rounded at random: next to a boundary a rounding of the gradient is a whole code")
    passes, models = 4, [Zoo(dtype) for _ in range(5)]
    optimizers = [case.make(model.parameters(), maximize=False) for model in models]
    model, plain, *shaken = models
    fused_backward(model, optimizers[0])
    if path == "composed":
        with composed():
            losses = train(model, optimizers[0], 8, passes)
    else:
        losses = train(model, optimizers[0], 8, passes)
    expected = train(plain, optimizers[1], 8, passes)
    moved = []
    for seed, (other, optimizer) in enumerate(zip(shaken, optimizers[2:], strict=True)):
        train(other, optimizer, 8, passes, lambda step, one=other, seed=seed: shake(one, 10 * seed + step, passes))
        moved.append(apart(other, plain))
    assert apart(model, plain) <= max(moved)
    assert max(abs(a - b) for a, b in zip(losses, expected, strict=True)) <= max(moved) * expected[0]


@every_accumulating
def test_bfloat16_and_random_rounding_train_alike(case: Case) -> None:
    """Within what other random words do to the losses at the end, or a rounding of all losses."""
    model = Zoo(torch.bfloat16)
    optimizer = case.make(model.parameters())
    fused_backward(model, optimizer)
    ends, sums = [], []
    for seed in range(4):
        plain = Zoo(torch.bfloat16)
        losses = train(plain, case.make(plain.parameters(), seed=seed), 30, 2)
        ends.append(sum(losses[-10:]))
        sums.append(sum(losses))
    apart = max(max(ends) - min(ends), torch.finfo(torch.bfloat16).eps * max(sums))
    assert min(ends) - apart <= sum(train(model, optimizer, 30, 2)[-10:]) <= max(ends) + apart


def test_a_sum_is_held_in_the_subspace_within_rounding() -> None:
    weight = nn.Parameter(draw(12, 9))
    optimizer = GaLoreAdamW([weight], rank=3, update_proj_gap=100)
    model = nn.ParameterList([weight])
    fused_backward(model, optimizer)
    grads = [draw(12, 9, seed=seed) for seed in range(4)]
    (weight * grads[0]).sum().backward()
    optimizer.step()
    for grad in grads[1:]:
        (weight * grad).sum().backward()
    ((_, draft),) = optimizer._gather().items()
    basis = optimizer.state[weight]["proj.basis"].double()
    total = sum(grad.double() for grad in grads[1:])
    bound = (12 + 3) * 2.0**-24 * sum(grad.norm() for grad in grads[1:])
    assert draft.freed and draft.low is not None
    assert (draft.low[0] - total @ basis).abs().max() <= bound
    assert draft.grads[0].untyped_storage().nbytes() == 4  # one element, which is not a number
    assert draft.grads[0].isnan().all()


@every_optimizer
def test_a_closure_has_the_bits_of_ordinary_training(case: Case) -> None:
    """As Lightning steps: what a closure leaves of its backward is what the step takes."""
    model, plain = Zoo(), Zoo()
    optimizer, reference = (case.make(one.named_parameters(), **keys(case)) for one in (model, plain))
    fused_backward(model, optimizer)

    def closure(step: int) -> float:
        optimizer.zero_grad()
        return backward(model, step, 1)

    if not steps_inside(case):
        backward(model, 90, 1)  # forgotten: the closure zeroes first
    assert [optimizer.step(lambda step=step: closure(step)) for step in range(5)] == train(plain, reference, 5)
    assert same(snapshot(model, optimizer), snapshot(plain, reference))


@every_stepping_inside
def test_what_reads_the_whole_gradient_steps_inside_backward(case: Case) -> None:
    model = Zoo()
    optimizer = case.make(model.named_parameters(), **keys(case))
    handle = fused_backward(model, optimizer)
    before = copy.deepcopy(dict(model.named_parameters()))
    backward(model, 0, 1)
    moved = {name for name, param in model.named_parameters() if not torch.equal(param, before[name])}
    assert moved == {"embed.weight", "conv.weight", "up.weight", "down.weight", "square.weight"}  # all projected ones
    with pytest.raises(RuntimeError, match=r"backward: `\S+` must get one gradient per step, .* use a larger batch"):
        backward(model, 1, 1)
    optimizer.zero_grad()
    backward(model, 2, 1)
    optimizer.step()
    backward(model, 3, 1)  # the step before took up the first one
    assert handle.plan().held < handle.plan().ordinary / 2


@every_stepping_inside
def test_a_nonfinite_gradient_raises_inside_backward(case: Case) -> None:
    model = Zoo()
    optimizer = case.make(model.named_parameters(), **keys(case))
    fused_backward(model, optimizer)
    train(model, optimizer, 1)
    before = copy.deepcopy(now(model, optimizer))
    with pytest.raises(RuntimeError, match=r"step: the gradient of `square.weight` \(12, 12\) must be finite"):
        (loss_of(model, 1) * torch.nan).backward()
    assert same(before, now(model, optimizer))  # it came first


@every_accumulating
@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("at", [0, 2, 3])  # the first step, within a period, at a refresh
def test_a_nonfinite_gradient_skips_the_whole_step(case: Case, passes: int, at: int) -> None:
    model, clean = Zoo(), Zoo()
    optimizer, reference = case.make(model.parameters()), case.make(clean.parameters())
    for one, its in ((model, optimizer), (clean, reference)):
        fused_backward(one, its)
    for step in range(5):
        if step == at:
            backward(model, 9, passes)
            (loss_of(model, 99) * torch.inf).backward()
            assert taken(model)
            before = copy.deepcopy(now(model, optimizer))
            optimizer.step()
            assert same(before, now(model, optimizer))
            assert optimizer.skipped_steps == 1
        for one, its in ((model, optimizer), (clean, reference)):
            backward(one, step, passes)
            its.step()
    assert same(snapshot(model, optimizer), snapshot(clean, reference))
    assert reference.skipped_steps == 0


@every_accumulating
def test_a_nonfinite_gradient_can_raise_at_the_step(case: Case) -> None:
    model = Zoo()
    optimizer = case.make(model.named_parameters(), nonfinite="raise")
    fused_backward(model, optimizer, max_norm=1.0)
    train(model, optimizer, 2)
    backward(model, 2, 2)
    model.down.weight.register_hook(lambda grad: grad * torch.inf)
    backward(model, 3, 1)
    before = copy.deepcopy(dict(model.state_dict()))
    with pytest.raises(RuntimeError, match=r"step: the gradient of `down.weight` \(12, 20\) must be finite"):
        optimizer.step()
    assert same(before, dict(model.state_dict()))


@every_optimizer
def test_schedulers_act_at_once(case: Case) -> None:
    runs = []
    for fusing in (True, False):
        model = Zoo()
        optimizer = case.make(model.parameters(), **keys(case))
        if fusing:
            fused_backward(model, optimizer)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for number in range(6):
            model.zero_grad()
            loss_of(model, number).backward()
            optimizer.step()
            scheduler.step()
            optimizer.param_groups[0]["weight_decay"] = 0.1 * number
        runs.append(snapshot(model, optimizer))
    assert same(*runs)


def test_the_guide_says_how_each_method_is_held() -> None:
    """Rows of docs/guides/layerwise.md that name methods: what the parts of each say."""
    page = Path(__file__).resolve().parents[2] / "docs" / "guides" / "layerwise.md"
    rows = re.findall(r"^\| ([^|]+) \| (`[^|]+`) \| ([^|]+) \| ([^|]+) \|$", page.read_text(encoding="utf-8"), re.M)
    ways = {"the low-rank gradient": Way.SUBSPACE, "the whole gradient": Way.WHOLE, "nothing": Way.AT_ONCE}
    told = {
        name: ways[re.split(r"[;:]", one)[0]] for _, names, one, _ in rows for name in re.findall(r"`(\w+)`", names)
    }
    cases = {case.name: case for case in CASES if case.name == case.method}
    assert told == {name: way(case) for name, case in cases.items()}

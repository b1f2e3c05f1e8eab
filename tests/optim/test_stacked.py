"""A stack of E matrices trains bit for bit as E parameters with the same numbers and gradients do."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from lowrank_core.optim import GaLoreAdamW, devices
from optim_cases import CASES, Case, composed, draw, every_optimizer, same
from stacks import IDLE, IDLE_STEPS, STACKS, Named, apart, give, gradients, made, stacked, states_of, train, weights_of
from torch import Tensor, nn

HALF = 5  # steps before a run is saved: in the middle of a period, with the idle expert just awake
STEPS = 11


def both(case: Case, dtype: torch.dtype, **keys: Any) -> tuple[Named, Any, Named, Any]:
    one = stacked(dtype)
    other = apart(one)
    return one, made(case, one, **keys), other, made(case, other, **keys)


def agree(one: Named, optimizer: Any, other: Named, reference: Any) -> None:
    assert same(weights_of(one), weights_of(other))
    assert same(states_of(one, optimizer), states_of(other, reference))
    assert optimizer.state_bytes() == reference.state_bytes()


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
def test_it_trains_as_its_matrices_would_and_resumes(case: Case, dtype: torch.dtype) -> None:
    one, optimizer, other, reference = both(case, dtype, weight_decay=0.1)
    assert optimizer.planned_state_bytes() == reference.planned_state_bytes()
    train(one, optimizer, range(HALF), lambda step: gradients(step, dtype))
    train(other, reference, range(HALF), lambda step: gradients(step, dtype))
    agree(one, optimizer, other, reference)
    file = io.BytesIO()
    torch.save({"weights": one, "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = made(case, saved["weights"], weight_decay=0.1)
    resumed.load_state_dict(saved["optimizer"])
    assert same(resumed.state_dict(), optimizer.state_dict())
    train(saved["weights"], resumed, range(HALF, STEPS), lambda step: gradients(step, dtype))
    train(other, reference, range(HALF, STEPS), lambda step: gradients(step, dtype))
    agree(saved["weights"], resumed, other, reference)


@every_optimizer
def test_also_composed_and_without_kernels(case: Case) -> None:
    modes = (
        [composed] if case.moment_dtype == "int8" or "rounding" in case.keys else [composed, devices.without_kernels]
    )
    for mode in modes:
        with mode():
            one, optimizer, other, reference = both(case, torch.float32)
            train(one, optimizer, range(5), gradients)
            train(other, reference, range(5), gradients)
        agree(one, optimizer, other, reference)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.method in ("scale", "frugal")], ids=lambda case: case.name
)
@pytest.mark.parametrize(
    "order", [(STACKS, ("first", "last", "gain")), (("first", "last", "gain"), STACKS)], ids=["first", "last"]
)
def test_wherever_the_stack_stands(case: Case, order: Any) -> None:
    """Where a method looks at all matrices: SCALE at the last one, FRUGAL at a group."""
    one, other = stacked(), {}
    other = apart(one)
    optimizer, reference = made(case, one, order), made(case, other, order)
    train(one, optimizer, range(7), gradients)
    train(other, reference, range(7), gradients)
    agree(one, optimizer, other, reference)


LAYOUTS = {
    "transposed": lambda w: w.mT.contiguous().mT,  # as one that is stored [E, in, out] and seen as [E, out, in]
    "experts inside": lambda w: w.permute(1, 0, 2).contiguous().permute(1, 0, 2),
    "a slice": lambda w: torch.stack([w, torch.full_like(w, torch.nan)], dim=-1)[..., 0],
}


@every_optimizer
@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_any_memory(case: Case, layout: str) -> None:
    """With gradients in that memory, too; what lies between its numbers stays as it is."""
    one = stacked()
    other = apart(one)
    for name in STACKS:
        one[name].data = LAYOUTS[layout](one[name].data)
        assert not one[name].is_contiguous()
        for i in range(len(one[name])):
            other[f"{name}[{i}]"].data = LAYOUTS[layout](one[name].detach()[i].clone()[None])[0]
    optimizer, reference = made(case, one), made(case, other)
    for step in range(5):
        for named in (one, other):
            give(named, gradients(step))
        for name in STACKS:
            one[name].grad = LAYOUTS[layout](one[name].grad)
            for i in range(len(one[name])):
                grad = other[f"{name}[{i}]"].grad
                other[f"{name}[{i}]"].grad = LAYOUTS[layout](grad[None])[0]
        optimizer.step()
        reference.step()
    agree(one, optimizer, other, reference)


@every_optimizer
def test_an_expert_without_tokens(case: Case) -> None:
    """It behaves as a matrix with a gradient of zeros: it has no subspace, and decays."""
    named = {"up": nn.Parameter(draw(4, 20, 12))}
    optimizer = made(case, named, [("up",)], weight_decay=0.5)
    before = named["up"].detach().clone()
    train(named, optimizer, range(IDLE_STEPS), gradients)
    decay = (1 - case.lr * 0.5) ** IDLE_STEPS
    idle = named["up"].detach()[IDLE]
    kept = before[IDLE]
    for _ in range(IDLE_STEPS):
        kept = kept * (1 - case.lr * 0.5)
    assert torch.equal(idle, kept) and decay < 1
    assert not torch.equal(named["up"].detach()[0], before[0] * decay)
    train(named, optimizer, range(IDLE_STEPS, IDLE_STEPS + 3), gradients)
    assert not torch.equal(named["up"].detach()[IDLE], kept * (1 - case.lr * 0.5) ** 3)


def test_seeds_are_those_of_parameters_in_its_place() -> None:
    """Each matrix counts as one in the position that keys all draws, of what comes behind a stack too."""
    params = [nn.Parameter(draw(6, 8)), nn.Parameter(draw(3, 6, 8)), nn.Parameter(draw(6, 8))]
    groups = [{"params": [params[0]]}, {"params": [params[1]], "stacked": True}, {"params": [params[2]]}]
    slots = GaLoreAdamW([{**group, "rank": 2} for group in groups]).slots()
    assert [slot.index for slot in slots] == [0, 1, 2, 3, 4]
    assert [slot.expert for slot in slots] == [None, 0, 1, 2, None]
    assert len({slot.search_seed(0) for slot in slots}) == 5
    assert [slot.turn for slot in slots] == [(0, 1), (0, 3), (1, 3), (2, 3), (0, 1)]


def test_all_matrices_of_a_stack_are_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    from lowrank_core.optim import fused

    sizes: list[int] = []
    taken = fused.step_list
    monkeypatch.setattr(
        fused, "step_list", lambda params, *rest, **keys: (sizes.append(len(params)), taken(params, *rest, **keys))
    )
    weight = nn.Parameter(draw(7, 16, 12))
    optimizer = GaLoreAdamW([weight], rank=4, stacked=True)
    weight.grad = draw(7, 16, 12, seed=1)
    optimizer.step()
    assert sizes == [7]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite(value: float) -> None:
    one = stacked()
    optimizer = made(Case("galore", GaLoreAdamW), one)
    train(one, optimizer, range(2), gradients)
    before = copy.deepcopy((weights_of(one), states_of(one, optimizer)))
    grads = gradients(2)
    grads["down"][3, 1, 1] = value
    train(one, optimizer, [2], lambda _: grads)
    assert same(before, (weights_of(one), states_of(one, optimizer))) and optimizer.skipped_steps == 1
    for group in optimizer.param_groups:
        group["nonfinite"] = "raise"
    with pytest.raises(RuntimeError, match=r"the gradient of `down\[3\]` \(12, 20\) must be finite"):
        train(one, optimizer, [2], lambda _: grads)
    assert same(before, (weights_of(one), states_of(one, optimizer)))


def test_a_graph_made_before_holds_the_old_weights() -> None:
    weight = nn.Parameter(draw(3, 8, 6))
    optimizer = GaLoreAdamW([weight], rank=2, stacked=True)
    loss = (weight * weight).sum()
    weight.grad = draw(3, 8, 6, seed=1)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_new_memory_and_other_shapes_are_seen() -> None:
    """A step changes the memory that the parameter has now, and leaves what it had."""
    weight = nn.Parameter(draw(3, 8, 6))
    optimizer = GaLoreAdamW([weight], rank=2, stacked=True)
    weight.grad = draw(3, 8, 6, seed=1)
    optimizer.step()
    old = weight.data
    kept = old.clone()
    weight.data = old.clone()
    optimizer.step()
    assert torch.equal(old, kept) and not torch.equal(weight.detach(), kept)
    weight.data = old.mT.contiguous().mT  # other strides at once
    optimizer.step()
    assert not torch.equal(weight.detach(), kept)


def test_complex_stacks_are_plain() -> None:
    weight = nn.Parameter(torch.complex(draw(3, 6, 4), draw(3, 6, 4, seed=1)))
    alone = [nn.Parameter(part.detach().clone()) for part in weight]
    optimizer = GaLoreAdamW([{"params": [weight], "stacked": True, "rank": None}])
    reference = GaLoreAdamW([{"params": alone, "rank": None}])
    for step in range(3):
        grad = torch.complex(draw(3, 6, 4, seed=step), draw(3, 6, 4, seed=9 + step))
        weight.grad = grad
        for i, param in enumerate(alone):
            param.grad = grad[i].clone()
        optimizer.step()
        reference.step()
    assert torch.equal(weight.detach(), torch.stack([param.detach() for param in alone]))


def test_no_copy_of_a_stack_is_made() -> None:
    """The slots see the parameter's own memory, and its gradient's."""
    weight = nn.Parameter(draw(3, 6, 4))
    optimizer = GaLoreAdamW([weight], rank=2, stacked=True)
    grad = draw(3, 6, 4, seed=1)

    def inside(part: Tensor, whole: Tensor) -> bool:
        return part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()

    for slot in optimizer.slots():
        assert inside(slot.weight, weight) and inside(slot.gradient(grad), grad)
        assert not slot.weight.requires_grad

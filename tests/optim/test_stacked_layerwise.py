"""`fused_backward` with stacks: as with every matrix as a parameter of its own, in bits and in what is held."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layerwise_runs import every_accumulating, every_stepping_inside, keys, taken
from lowrank_core.optim import GaLoreAdamW, fused_backward
from optim_cases import Case, draw, every_optimizer, same
from stacks import IDLE, STACKS, Named, apart, made, stacked, states_of, weights_of
from torch import Tensor, nn


class Mixture(nn.Module):
    """A mixture of experts whose weights are stacks, or parameters of their own; expert 2 gets no token at first."""

    def __init__(self, named: Named) -> None:
        super().__init__()
        self.named = named
        for name, param in named.items():
            self.register_parameter(name.replace("[", "_").rstrip("]"), param)

    def matrices(self, stack: str) -> list[Tensor]:
        if stack in self.named:
            return list(self.named[stack].unbind())
        return [param for name, param in self.named.items() if name.startswith(f"{stack}[")]

    def forward(self, x: Tensor, idle: bool) -> Tensor:
        x, out = torch.tanh(x @ self.named["first"].mT @ self.named["last"].mT), 0
        experts = list(zip(self.matrices("up"), self.matrices("down"), strict=True))
        for number, (up, down) in enumerate(experts):
            if number != IDLE or not idle:
                tokens = x[number :: len(experts)]
                out = out + (torch.tanh(tokens @ up.mT) @ down.mT * self.named["gain"]).square().sum()
        return out / 40


def train(model: Mixture, optimizer: Any, steps: int, passes: int = 1, between: Any = lambda: None) -> list[float]:
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        for number in range(passes):
            loss = model(draw(16, 20, seed=10 * step + number), idle=step < 4)
            for param in model.parameters():  # as experts in a stack have: no gradient is None
                loss = loss + 0 * param.sum()
            loss.backward()
        between()
        optimizer.step()
        losses.append(loss.item())
    return losses


def both(case: Case, **more: Any) -> tuple[Mixture, Any, Mixture, Any]:
    one, other = Mixture(stacked()), Mixture(apart(stacked()))
    return one, made(case, one.named, **keys(case), **more), other, made(case, other.named, **keys(case), **more)


def agree(one: Mixture, optimizer: Any, other: Mixture, reference: Any) -> None:
    assert same(weights_of(one.named), weights_of(other.named))
    assert same(states_of(one.named, optimizer), states_of(other.named, reference))


@every_optimizer
def test_one_backward_per_step_has_the_bits_of_ordinary_training(case: Case) -> None:
    one, other = Mixture(stacked()), Mixture(stacked())
    optimizer, reference = (made(case, model.named, **keys(case)) for model in (one, other))
    fused_backward(one, optimizer)
    seen: list[bool] = []
    assert train(one, optimizer, 8, between=lambda: seen.append(taken(one))) == train(other, reference, 8)
    assert seen == [True] * 8
    agree(one, optimizer, other, reference)


@every_accumulating
@pytest.mark.parametrize("stagger", [False, True])
@pytest.mark.parametrize(
    "clip", [{}, {"max_norm": 0.1}, {"max_norm": 0.1, "clip": "projected"}], ids=["", "whole", "projected"]
)
def test_several_backward_passes_as_with_parameters_of_their_own(
    case: Case, stagger: bool, clip: dict[str, Any]
) -> None:
    known = "stagger" in case.make([nn.Parameter(draw(6, 8))]).defaults
    one, optimizer, other, reference = both(case, **({"stagger": stagger} if known else {}))
    handles = [fused_backward(model, at, **clip) for model, at in ((one, optimizer), (other, reference))]
    assert train(one, optimizer, 7, passes=2) == train(other, reference, 7, passes=2)
    agree(one, optimizer, other, reference)
    assert handles[0].last_norm == handles[1].last_norm and handles[0].norm_error == handles[1].norm_error
    assert handles[0].plan()._replace(passing=0) == handles[1].plan()._replace(passing=0)


@every_stepping_inside
def test_one_that_steps_inside_backward_takes_one(case: Case) -> None:
    one, optimizer, *_ = both(case)
    fused_backward(one, optimizer)
    before = weights_of(one.named)
    one(draw(16, 20), idle=False).backward()
    for name, weight in weights_of(one.named).items():
        if name[: name.find("[")] in STACKS:
            assert not torch.equal(weight, before[name]), name
    with pytest.raises(RuntimeError, match="must get one gradient per step"):
        one(draw(16, 20), idle=False).backward()


def test_matrices_that_are_due_hold_no_more_than_their_part() -> None:
    """A view of one matrix' gradient would keep that of the whole stack."""
    weight = nn.Parameter(draw(8, 40, 32))
    optimizer = GaLoreAdamW([weight], rank=2, stacked=True, stagger=True, update_proj_gap=8)
    model = nn.Module()
    model.weight = weight
    handle = fused_backward(model, optimizer)
    whole, found = weight.numel() * weight.element_size(), []
    for step in range(4):
        (draw(8, 40, 32, seed=step) * weight).sum().backward()
        held = [held.draft for held in optimizer._source.held.values()]
        kept = [tensor for draft in held for tensor in (draft.low if draft.freed else draft.grads)]
        found.append(sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}.values()))
        optimizer.step()
    due = whole // 8
    assert found[0] == handle.plan().due == whole  # the first step looks for all
    assert found[1] < due + handle.plan().held * 2 and found[1] >= due + handle.plan().held * 7 // 8
    assert found[1] == found[2] == found[3] < whole / 2


def test_a_handle_counts_parameters() -> None:
    one, optimizer, *_ = both(Case("galore", GaLoreAdamW))
    handle = fused_backward(one, optimizer)
    one(draw(16, 20), idle=False).backward()
    with pytest.warns(UserWarning, match="the gradients of 5 parameters are dropped"):
        handle.remove()

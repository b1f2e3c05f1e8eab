"""Optimizers beside torch.compile: around the model, the optimizer's step and the whole training step.

Everywhere a frame that is compiled a second time is an error, and so is a new frame after the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from lowrank_core.optim import LISA, Monitor, fused_backward
from optim_cases import CASES, Case, Zoo, batch, loss_on, same, snapshot, train
from testing.compiling import frames, nothing_compiled_twice
from torch import Tensor

STEPS = 5  # every row of the table refreshes at the first and at the fourth
METHODS = list({case.method: case for case in reversed(CASES)}.values())[::-1]  # the first row of each

Step = Callable[[Tensor, Tensor], Any]
Make = Callable[[Zoo, Any], torch.optim.Optimizer]

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler's


@pytest.fixture(autouse=True)
def nothing_twice() -> Iterator[None]:
    with nothing_compiled_twice():
        yield


def compiled(call: Any, **options: Any) -> Any:
    return torch.compile(call, backend="eager", **options)


def step_of(model: Zoo, optimizer: torch.optim.Optimizer, what: str | None) -> Step:
    """One training step, of which `what` is compiled."""
    take = compiled(optimizer.step) if what == "step" else optimizer.step

    def one_step(tokens: Tensor, targets: Tensor) -> None:
        optimizer.zero_grad()
        loss_on(model, tokens, targets).backward()
        take()

    def with_closure(tokens: Tensor, targets: Tensor) -> None:
        def again() -> Tensor:
            optimizer.zero_grad()
            loss = loss_on(model, tokens, targets)
            loss.backward()
            return loss

        take(again)

    step = with_closure if what == "with closure" else one_step
    return step if what in (None, "step") else compiled(step)


def run(make: Make, what: str | None, rate: Any) -> tuple[Any, list[int]]:
    """Weights and state after some steps with `what` compiled and a rate that changes, and the frames by then."""
    model, counts = Zoo(), []
    optimizer = make(model, rate)
    step = step_of(model, optimizer, what)
    for number in range(STEPS):
        lr = 0.02 / (1 + number)
        for group in optimizer.param_groups:
            group["lr"] = group["lr"].fill_(lr) if isinstance(group["lr"], Tensor) else lr
        step(*batch(number))
        counts.append(frames())
    return snapshot(model, optimizer), counts


def check(make: Make, what: str, rate: Callable[[], Any] = lambda: torch.tensor(0.02)) -> None:
    end, counts = run(make, what, rate())
    assert counts[0] > 0
    assert counts == [counts[0]] * STEPS
    assert same(end, run(make, None, rate())[0])
    assert frames() == counts[0]


@pytest.mark.parametrize("case", METHODS, ids=lambda case: case.method)
def test_step_of_every_method(case: Case) -> None:
    """Across a refresh, with a tensor for a rate, as one compiles torch's optimizers."""
    check(lambda model, lr: case.make(model.parameters(), lr=lr), "step")


def galore(model: Zoo, lr: Any) -> torch.optim.Optimizer:
    return CASES[0].make(model.parameters(), lr=lr)


def at_backward(model: Zoo, lr: Any) -> torch.optim.Optimizer:
    optimizer = CASES[0].make(model.parameters(), lr=lr)
    fused_backward(model, optimizer, max_norm=1.0)
    return optimizer


def in_backward(model: Zoo, lr: Any) -> torch.optim.Optimizer:
    optimizer = CASES[0].make(model.parameters(), lr=lr, nonfinite="raise")
    fused_backward(model, optimizer, at_once=True)
    return optimizer


def watched(model: Zoo, lr: Any) -> torch.optim.Optimizer:
    optimizer = CASES[0].make(model.parameters(), lr=lr)
    Monitor(optimizer)
    return optimizer


@pytest.mark.parametrize("what", ["whole step", "with closure"])
@pytest.mark.parametrize("rate", [lambda: torch.tensor(0.02), lambda: 0.02], ids=["tensor", "float"])
def test_whole_training_step(what: str, rate: Callable[[], Any]) -> None:
    check(galore, what, rate)


@pytest.mark.parametrize("make", [at_backward, in_backward, watched])
@pytest.mark.parametrize("what", ["step", "whole step"])
def test_with_what_is_attached(make: Make, what: str) -> None:
    check(make, what)


@pytest.mark.parametrize("inside", ["adamw", "galore"])
def test_step_of_lisa(inside: str) -> None:
    """Through periods in which other layers have gradients."""

    def make(model: Zoo, lr: Any) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr) if inside == "adamw" else galore(model, lr)
        return LISA(optimizer, model, layers=[model.up, model.down], active=1, period=2)

    check(make, "step")


def test_model() -> None:
    model, reference = Zoo(), Zoo()
    optimizer, other = CASES[0].make(model.parameters()), CASES[0].make(reference.parameters())
    losses = train(compiled(model, fullgraph=True), optimizer, range(STEPS))
    assert losses == train(reference, other, range(STEPS))
    assert same(snapshot(model, optimizer), snapshot(reference, other))

"""torch.compile around the step of an adapter's optimizer, and the training step: the same bits, compiled once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lowrank_core import adapters
from testing.compiling import frames, nothing_compiled_twice
from torch import Tensor, nn

STEPS = 4

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler's


@pytest.fixture(autouse=True)
def nothing_twice() -> Iterator[None]:
    with nothing_compiled_twice():
        yield


def run(kind: str, what: str | None) -> tuple[list[Tensor], list[int]]:
    """The trained parameters after some steps at a rate that changes, and the frames that were compiled by then."""
    draw, counts = torch.Generator().manual_seed(0), []
    model = nn.Sequential(adapters.LoRALinear(nn.Linear(6, 4), rank=2))
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn(param.shape, generator=draw))
    lr = torch.tensor(0.1)
    optimizer: Any = getattr(adapters, kind)(model, lr=lr)
    take = torch.compile(optimizer.step, backend="eager") if what == "step" else optimizer.step

    def one_step(x: Tensor, y: Tensor) -> None:
        if kind == "LoKO":
            take(model(x), y)
            return
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        take()

    step = torch.compile(one_step, backend="eager") if what == "whole step" else one_step
    for number in range(STEPS):
        lr.fill_(0.1 / (1 + number))
        step(torch.randn(3, 6, generator=draw), torch.randint(4, (3,), generator=draw))
        counts.append(frames())
    return [param.detach().clone() for param in model.parameters() if param.requires_grad], counts


@pytest.mark.parametrize("what", ["step", "whole step"])
@pytest.mark.parametrize("kind", ["LoKO", "ScaledAdamW", "LoRAProAdamW", "ALLoRAAdamW"])
def test_compiled_once_with_the_same_bits(kind: str, what: str) -> None:
    found, counts = run(kind, what)
    assert counts == [counts[0]] * STEPS and counts[0] > 0
    assert all(map(torch.equal, found, run(kind, None)[0]))

"""Optimizers beside torch.compile: around the model, and around the whole training step."""

from __future__ import annotations

import pytest
import torch
from optim_cases import CASES, Zoo, batch, loss_on, same, snapshot, train
from torch import Tensor


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler's own
@pytest.mark.parametrize("what", ["model", "whole step"])
def test_torch_compile(what: str) -> None:
    model, reference = Zoo(), Zoo()
    optimizer, other = CASES[0].make(model.parameters()), CASES[0].make(reference.parameters())
    if what == "model":
        losses = train(torch.compile(model, backend="eager", fullgraph=True), optimizer, range(5))
    else:

        @torch.compile(backend="eager")
        def one_step(tokens: Tensor, targets: Tensor) -> Tensor:
            optimizer.zero_grad()
            loss = loss_on(model, tokens, targets)
            loss.backward()
            optimizer.step()
            return loss

        losses = [one_step(*batch(number)).item() for number in range(5)]
    assert losses == train(reference, other, range(5))
    assert same(snapshot(model, optimizer), snapshot(reference, other))

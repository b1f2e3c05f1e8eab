"""Putting layers in the place of linear ones: a layer with two names, and what is left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lowrank_core import adapters
from torch import Tensor, nn

CASES: dict[str, tuple[Any, type[nn.Module]]] = {
    "geolora": (lambda model, **keys: adapters.GeoLoRA(model, rank=2, lr=0.1, **keys), adapters.USVLinear),
    "adalora": (
        lambda model, **keys: adapters.AdaLoRA(model, init_rank=3, target_rank=2, total_steps=9, lr=0.1, **keys),
        adapters.AdaLoRALinear,
    ),
}


class Twice(nn.Module):
    """One linear layer under two names, one of them in a block that has two names itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.block = nn.Sequential(nn.Tanh(), self.first)
        self.again = self.block
        self.other = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.again(self.block(self.first(x))))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", CASES)
def test_a_layer_with_two_names_is_replaced_under_both(name: str) -> None:
    make, kind = CASES[name]
    torch.manual_seed(0)
    model, x = Twice().double(), torch.randn(5, 6, dtype=torch.float64)
    linear, start = model.first, model(x).detach()
    optimizer = make(model)
    assert set(optimizer.ranks()) == {"first", "other"}
    assert isinstance(model.first, kind) and model.first is model.block[1] is model.again[1]
    torch.testing.assert_close(model(x).detach(), start)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    expected = model(x).detach()
    optimizer.merge()
    assert linear is model.first is model.block[1] is model.again[1]
    torch.testing.assert_close(model(x).detach(), expected)


@pytest.mark.parametrize("name", CASES)
def test_a_weight_tied_to_another_layer_is_merged_apart(name: str) -> None:
    """Each layer adds its own part, and an embedding that has the weight, too, adds none."""
    torch.manual_seed(0)
    table = nn.Embedding(6, 6).double()
    model, ids = nn.Sequential(table, *(nn.Linear(6, 6, bias=False).double() for _ in range(2))), torch.arange(6)
    for layer in model[1:]:
        layer.weight = table.weight
    optimizer = CASES[name][0](model)
    for _ in range(3):
        optimizer.zero_grad()
        model(ids).square().mean().backward()
        optimizer.step()
    expected, before = model(ids).detach(), table.weight.detach().clone()
    optimizer.merge()
    torch.testing.assert_close(model(ids).detach(), expected)
    assert torch.equal(table.weight, before) and not torch.equal(model[1].weight, model[2].weight)


@pytest.mark.parametrize("word", ["first", "block", "again"])
def test_one_excluded_name_of_two_is_enough(word: str) -> None:
    model = Twice()
    optimizer = adapters.GeoLoRA(model, rank=2, exclude=(word,))
    assert list(optimizer.ranks()) == ["other"] and type(model.first) is nn.Linear

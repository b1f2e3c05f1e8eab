"""The groups of LoRA+."""

from __future__ import annotations

import pytest
import torch
from lowrank_core import adapters
from torch import nn


def model() -> nn.Module:
    found = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 4))
    found[0] = adapters.LoRALinear(found[0], rank=2)
    return found


def test_every_trained_parameter_is_in_one_group_with_its_rate() -> None:
    groups = adapters.loraplus_param_groups(model(), 1e-3, ratio=8, weight_decay=0.1)
    found = {name: (group["lr"], group["weight_decay"]) for group in groups for name, _ in group["params"]}
    assert found == {
        "0.lora_A": (1e-3, 0.1), "2.weight": (1e-3, 0.1), "0.lora_B": (8e-3, 0.1),
        "1.weight": (8e-3, 0.0), "1.bias": (8e-3, 0.0), "2.bias": (8e-3, 0.0),
    }  # fmt: skip


def test_groups_serve_torch_and_this_package() -> None:
    net = model()
    for make in (torch.optim.AdamW, lambda groups: adapters.ScaledAdamW(net, groups)):
        optimizer = make(adapters.loraplus_param_groups(net, 1e-3))
        net(torch.ones(3, 6)).square().mean().backward()
        optimizer.step()
        assert sorted(group["lr"] for group in optimizer.param_groups) == [1e-3, 0.016, 0.016]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"lr": -1.0}, "`lr` must be a number >= 0, got -1.0"),
        ({"lr": 1.0, "ratio": 0}, "`ratio` must be a number > 0, got 0"),
        ({"lr": 1.0, "embedding_lr": -1}, "`embedding_lr` must be a number >= 0, got -1"),
        ({"lr": 1.0, "weight_decay": float("nan")}, "`weight_decay` must be a number >= 0, got nan"),
    ],
)
def test_values_out_of_range_are_refused(keys: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^loraplus_param_groups: {message}"):
        adapters.loraplus_param_groups(model(), **keys)

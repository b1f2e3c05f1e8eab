"""A small model with adapters, and what a filter knows of it."""

from __future__ import annotations

from typing import Any

import torch
from lowrank_core import adapters
from torch import Tensor, nn

CLASSES = 3


def model(dtype: torch.dtype = torch.float64, seed: int = 0, classes: int = CLASSES) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, classes)).to(dtype)
    for i in (0, 2):
        net[i] = adapters.LoRALinear(net[i], rank=2)
        nn.init.normal_(net[i].lora_B, std=0.3)
    return net


def batch(b: int = 1, dtype: torch.dtype = torch.float64, seed: int = 1) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(b, 5, dtype=dtype, generator=g), torch.randint(CLASSES, (b,), generator=g)


def theta(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters() if p.requires_grad])


def variances(optimizer: Any, net: nn.Module) -> Tensor:
    return torch.cat([optimizer.state[p]["variance"].flatten() for p in net.parameters() if p.requires_grad])

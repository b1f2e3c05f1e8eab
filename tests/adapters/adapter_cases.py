"""A small model with LoRA adapters, and torch.func as the slow oracle of its Jacobian."""

from __future__ import annotations

import torch
from testing import cases
from torch import Tensor, nn


class LoRA(nn.Module):
    """x W0ᵀ + s (x Aᵀ) Bᵀ with W0 frozen."""

    def __init__(self, d_in: int, d_out: int, rank: int, scale: float = 0.5) -> None:
        super().__init__()
        self.base = nn.Linear(d_in, d_out)
        self.lora_A, self.lora_B = nn.Linear(d_in, rank, bias=False), nn.Linear(rank, d_out, bias=False)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * self.lora_B(self.lora_A(x))


class Net(nn.Module):
    """Two adapted layers, one of them used twice, and a head; tokens are averaged."""

    def __init__(self, d: int = 6, outputs: int = 5) -> None:
        super().__init__()
        self.first, self.head = LoRA(d, d, 2), LoRA(d, outputs, 3)
        self.gain = nn.Parameter(torch.ones(d))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        h = torch.tanh(self.first(h)) * self.gain
        return self.head(h).mean(-2)


def net(dtype: torch.dtype = torch.float64) -> Net:
    """Every parameter drawn; only the adapters, one bias and `gain` train."""
    model = Net().to(dtype)
    for i, parameter in enumerate(model.parameters()):
        parameter.data = 0.5 * cases.gaussian(1, parameter.numel(), seed=i)[0].view_as(parameter).to(dtype)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora" in name or name in ("gain", "head.base.bias"))
    return model


def tokens(count: int = 4, *batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return cases.gaussian(count, 6, *batch, seed=77).to(dtype)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def oracle(model: nn.Module, x: Tensor) -> list[Tensor]:
    """[number of outputs, *shape] for each trainable parameter, by torch.func."""
    named = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    rows = torch.func.jacrev(lambda values: torch.func.functional_call(model, values, (x,)).flatten())(named)
    return list(rows.values())

"""ScaledAdamW against a plain statement in float64, with the kernel and without."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from lowrank_core import adapters
from lowrank_core.optim.devices import without_kernels
from lowrank_core.reference import chain_lr as reference
from testing import tolerance
from torch import nn

STEPS, LR = 5, 0.1


@pytest.mark.parametrize("kernels", [True, False])
def test_steps_are_those_of_the_plain_statement(kernels: bool) -> None:
    torch.manual_seed(0)
    layers = [adapters.LoRALinear(nn.Linear(6, 9), rank=3), adapters.LoRALinear(nn.Linear(9, 4), rank=2)]
    model = nn.Sequential(*layers).double()
    for layer in layers:
        nn.init.normal_(layer.lora_B)
    plain = [[layer.lora_A.detach().clone(), layer.lora_B.detach().clone()] for layer in layers]
    adam = [[[torch.zeros_like(x), torch.zeros_like(x)] for x in pair] for pair in plain]
    first, second = ({"params": layer.parameters(), "reg": reg} for layer, reg in zip(layers, (0.5, 2.0), strict=True))
    optimizer = adapters.ScaledAdamW(model, [first, second], lr=LR, weight_decay=0.1)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        model(torch.randn(5, 6, dtype=torch.float64)).square().mean().backward()
        for layer, pair, moments, reg in zip(layers, plain, adam, (0.5, 2.0), strict=True):
            grads = reference.scaled_gradients(layer.lora_A.grad, layer.lora_B.grad, *pair, reg)
            for x, grad, (m, v) in zip(pair, grads, moments, strict=True):
                m.mul_(0.9).add_(grad, alpha=0.1)
                v.mul_(0.999).addcmul_(grad, grad, value=0.001)
                quotient = (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
                x.mul_(1 - LR * 0.1).sub_(LR * quotient)
        with nullcontext() if kernels else without_kernels():
            optimizer.step()
    for layer, pair in zip(layers, plain, strict=True):
        for found, want in zip((layer.lora_A, layer.lora_B), pair, strict=True):
            # Some 20 roundings a step, of numbers of order 1; the quotient forgets the size of a gradient.
            torch.testing.assert_close(found.detach(), want, rtol=0, atol=STEPS * tolerance.gamma(20**2, torch.float64))


@pytest.mark.parametrize("reg", [0, -1.0, float("nan"), "1"])
def test_a_damping_that_is_not_positive_is_refused(reg: object) -> None:
    model = nn.Sequential(adapters.LoRALinear(nn.Linear(6, 4), rank=2))
    with pytest.raises(ValueError, match="ScaledAdamW: `reg` must be a number > 0, got"):
        adapters.ScaledAdamW(model, reg=reg)

"""ALLoRAAdamW against a plain statement."""

from __future__ import annotations

import pytest
import torch
from lowrank_core import adapters
from testing import tolerance
from torch import nn

ETA = 3.0


def test_rows_are_scaled_by_their_norms_as_they_are_now() -> None:
    torch.manual_seed(0)
    layer = adapters.LoRALinear(nn.Linear(6, 5), rank=2).double()
    nn.init.normal_(layer.lora_B.data[1:])  # a row of zeros stays
    plain = [layer.lora_A.detach().clone(), layer.lora_B.detach().clone()]
    # Without memory: what AdamW takes is in its first moment, and a step is the sign of it.
    optimizer = adapters.ALLoRAAdamW(nn.Sequential(layer), lr=0.1, betas=(0.0, 0.0), eps=0.0, eta=ETA)
    for step in range(3):
        optimizer.zero_grad()
        layer(torch.randn(4, 6, dtype=torch.float64)).square().mean().backward()
        gradients = [layer.lora_A.grad, layer.lora_B.grad]
        optimizer.step()
        for i, (param, grad) in enumerate(zip((layer.lora_A, layer.lora_B), gradients, strict=True)):
            factor = 1 / (plain[i].square().sum(1, keepdim=True).sqrt() + 1 / ETA**2).sqrt()
            bound = 10 * tolerance.UNIT[torch.float64]  # some roundings of one number
            torch.testing.assert_close(optimizer.state[param]["exp_avg"], factor * grad, rtol=bound, atol=0)
            if step == 0 and i == 1:
                torch.testing.assert_close(optimizer.state[param]["exp_avg"][0], ETA * grad[0], rtol=bound, atol=0)
            plain[i] = plain[i] - 0.1 * grad.sign()
            torch.testing.assert_close(param.detach(), plain[i], rtol=0, atol=bound)


def test_each_group_has_its_eta() -> None:
    layer = adapters.LoRALinear(nn.Linear(6, 5), rank=2)
    groups = [{"params": [layer.lora_A]}, {"params": [layer.lora_B], "eta": 2.0}]
    optimizer = adapters.ALLoRAAdamW(nn.Sequential(layer), groups, betas=(0.0, 0.9), eta=7.0)
    layer(torch.ones(4, 6)).square().mean().backward()
    optimizer.step()
    torch.testing.assert_close(optimizer.state[layer.lora_B]["exp_avg"], 2 * layer.lora_B.grad)


@pytest.mark.parametrize("eta", [0, -1.0, float("inf"), None])
def test_an_eta_that_is_not_positive_is_refused(eta: object) -> None:
    model = nn.Sequential(adapters.LoRALinear(nn.Linear(6, 4), rank=2))
    with pytest.raises(ValueError, match="ALLoRAAdamW: `eta` must be a number > 0, got"):
        adapters.ALLoRAAdamW(model, eta=eta)

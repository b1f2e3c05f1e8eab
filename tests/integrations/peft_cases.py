"""Models with PEFT's adapters, and how far apart their outputs may be."""

from __future__ import annotations

from typing import Any

import peft
import torch
from integration_cases import batches, tiny_llama
from testing import tolerance
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

TARGETS = ["q_proj", "v_proj", "down_proj"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.conv = nn.Embedding(11, 6), nn.Conv1d(6, 8, 3, padding=1)
        self.up, self.head = Conv1D(7, 8), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.head(self.up(self.conv(self.embed(x).mT).mT))
        return mixed


def llama(init: Any = True, **config: Any) -> Any:
    torch.manual_seed(1)
    keys = {"r": 3, "lora_alpha": 6, "target_modules": TARGETS, "init_lora_weights": init, **config}
    return peft.get_peft_model(tiny_llama(), peft.LoraConfig(**keys))


def logits(model: Any) -> Tensor:
    found: Tensor = model.eval()(**next(iter(batches(1, 3)))).logits.detach()
    return found


def close(one: Tensor, other: Tensor, factor: float = 1.0) -> None:
    """Logits of a tiny model whose weights differ by some roundings: sums of up to 40 products, some 20 in a row."""
    bound = factor * 20 * tolerance.gamma(40, torch.float32) * float(other.abs().max())
    torch.testing.assert_close(one, other, rtol=0, atol=bound)

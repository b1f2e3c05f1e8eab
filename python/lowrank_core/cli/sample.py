"""Text that a model writes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

TEMPERATURE = 0.8
LENGTH = 240  # bytes written
PROMPT = 48  # bytes given, at most


@torch.no_grad()
def continuation(
    model: nn.Module, prompt: Tensor, *, length: int, window: int, temperature: float, seed: int
) -> Tensor:
    """Bytes `[length]` that `model` writes after the bytes `prompt` `[n]`, n >= 1, both int64.

    Each is drawn from softmax(logits / `temperature`), given at most the last `window` bytes. The model is in
    evaluation meanwhile; draws come from `seed` alone, so equal logits give equal text.
    """
    generator = torch.Generator().manual_seed(seed)
    training = model.training
    model.eval()
    text = prompt
    for _ in range(length):
        logits = model(text[None, -window:])[0, -1].float()
        chosen = torch.multinomial((logits / temperature).softmax(0), 1, generator=generator)
        text = torch.cat((text, chosen))
    model.train(training)
    return text[len(prompt) :]


def as_text(data: Tensor) -> str:
    """Bytes as text; what is no UTF-8, or would move the cursor, becomes the replacement character."""
    text = bytes(data.tolist()).decode("utf-8", errors="replace")
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)

"""The same docstrings under SmolLM2, a decoder of 135 million weights that is read from a GGUF file."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from adapters_compared.documents import folder_of, labelled, mean_of, without_padding
from adapters_compared.runs import DECODED, DECODER
from adapters_compared.stream import Stream, Task, drawn

PACKAGES, SAMPLES, HELD = 8, 240, 160


class Pooled(nn.Module):
    """A decoder under a new head on the mean over the tokens that count."""

    def __init__(self, body: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, classes)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Logits [B, C] of tokens [B, L]; the mask is of bools, and what pads comes last."""
        tokens, mask = without_padding(tokens, mask)
        states = self.body(input_ids=tokens, attention_mask=mask.long(), use_cache=False).last_hidden_state
        return self.head(mean_of(states, mask))


@cache
def _decoder() -> tuple[Any, Any]:
    import transformers

    folder = folder_of(DECODER)
    where = {"gguf_file": next(folder.glob("*.gguf")).name, "local_files_only": True}
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, **where)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **where)
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "right"
    return model.eval(), tokenizer


@cache
def texts() -> tuple[Tensor, Tensor, Tensor]:
    """As `documents.texts`, in the decoder's tokens."""
    return labelled(PACKAGES, _decoder()[1])


def model(seed: int) -> nn.Module:
    """SmolLM2 under a head that the seed draws."""
    body = copy.deepcopy(_decoder()[0])
    torch.manual_seed(seed)
    return Pooled(body, body.config.hidden_size, PACKAGES).eval()


def stream(seed: int) -> Stream:
    """The same are held out with every seed."""
    *inputs, classes = texts()
    return drawn(tuple(inputs), classes, seed, SAMPLES, HELD)


SMOLLM2 = Task(DECODED, model, stream, heads=("head",))

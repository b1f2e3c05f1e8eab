"""A tiny language model of transformers and its data: made here, nothing is downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

VOCABULARY, LENGTH = 32, 12


def tiny_llama(dtype: torch.dtype = torch.float32) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    state = torch.random.get_rng_state()
    torch.manual_seed(3)
    model = LlamaForCausalLM(config).to(dtype)
    torch.random.set_rng_state(state)
    return model


def examples(count: int) -> list[dict[str, Tensor]]:
    """Sequences that count upwards from a start of their own: a model can learn them."""
    draw = torch.Generator().manual_seed(5)
    starts = torch.randint(VOCABULARY, (count,), generator=draw).tolist()
    rows = [(start + torch.arange(LENGTH)) % VOCABULARY for start in starts]
    return [{"input_ids": row, "labels": row} for row in rows]


def batches(count: int, size: int) -> Iterator[dict[str, Tensor]]:
    rows = examples(count * size)
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        yield {key: torch.stack([row[key] for row in part]) for key in part[0]}

"""The byte-level decoder that `lowrank-core train` trains: RMSNorm, rotary positions, SwiGLU, untied head."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCAB = 256  # one token per byte value
ROPE_BASE = 10_000.0
INIT_STD = 0.02


@dataclass(frozen=True)
class ModelShape:
    """Sizes of the decoder, all >= 1; `dim` is a multiple of `2 * heads` (rotary positions turn pairs)."""

    dim: int
    layers: int
    heads: int
    ffn: int
    seq_len: int


class Attention(nn.Module):
    """Causal self-attention with rotary positions, `[batch, length, dim]` to the same shape."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for proj in self._inputs())
        mixed = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        return cast(Tensor, self.o_proj(mixed.transpose(1, 2).flatten(-2)))

    def _inputs(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        return self.q_proj, self.k_proj, self.v_proj


class FeedForward(nn.Module):
    """SwiGLU, `[..., dim]` to the same shape: `down(silu(gate(x)) * up(x))`."""

    def __init__(self, dim: int, ffn: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, ffn, bias=False)
        self.up_proj = nn.Linear(dim, ffn, bias=False)
        self.down_proj = nn.Linear(ffn, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)))


class Block(nn.Module):
    """One pre-norm layer: attention, then feed-forward, each added to its input."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.dim)
        self.attention = Attention(shape.dim, shape.heads)
        self.ffn_norm = nn.RMSNorm(shape.dim)
        self.ffn = FeedForward(shape.dim, shape.ffn)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + cast(Tensor, self.ffn(self.ffn_norm(x)))


class Decoder(nn.Module):
    """Maps bytes `[batch, length]` (int64, 0..255, length <= `seq_len`) to logits `[batch, length, 256]`.

    The weights depend on `seed` alone: the global random generator decides nothing here.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: ModelShape, *, seed: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, shape.dim)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.dim)
        self.lm_head = nn.Linear(shape.dim, VOCAB, bias=False)
        cos, sin = rope_tables(shape.seq_len, shape.dim // shape.heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._reset(shape.layers, torch.Generator().manual_seed(seed))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        length = tokens.shape[1]
        for block in self.blocks:
            x = block(x, self.cos[:length], self.sin[:length])
        return cast(Tensor, self.lm_head(self.norm(x)))

    def _reset(self, layers: int, generator: torch.Generator) -> None:
        """Normal weights; those that write into the residual stream shrink with depth: its variance stays."""
        for name, p in self.named_parameters():
            if p.ndim == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, std=INIT_STD / math.sqrt(2 * layers) if residual else INIT_STD, generator=generator)


def rope_tables(length: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[length, head_dim / 2]`, float32, of position times frequency (angles in float64).

    Source: Su et al. (2021), arXiv:2104.09864, eq. 34, pairing element i with i + head_dim / 2.
    """
    frequency = ROPE_BASE ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency)
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair of `x` `[..., length, head_dim]` by its position's angle; norms are kept, dtype too."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def next_byte_loss(model: nn.Module, windows: Tensor) -> Tensor:
    """Mean cross-entropy (nats per byte, float32) of each next byte; `windows` is `[batch, length + 1]`."""
    logits = model(windows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())

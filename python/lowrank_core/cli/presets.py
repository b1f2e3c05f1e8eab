"""Shapes of decoders by size, for `lowrank-core estimate`."""

from __future__ import annotations

from typing import NamedTuple

Shapes = dict[str, tuple[int, ...]]
Parts = list[tuple[Shapes, int]]  # and how often each occurs


class Sizes(NamedTuple):
    """A decoder with SwiGLU and an untied head; all >= 1."""

    dim: int
    ffn: int
    layers: int
    vocab: int

    def parts(self) -> Parts:
        """The shape of every parameter by name, as in `model.Decoder`: one layer, and what there is once."""
        d, f = self.dim, self.ffn
        block: Shapes = {
            "attention_norm.weight": (d,),
            **{f"attention.{name}_proj.weight": (d, d) for name in "qkvo"},
            "ffn_norm.weight": (d,),
            "ffn.gate_proj.weight": (f, d),
            "ffn.up_proj.weight": (f, d),
            "ffn.down_proj.weight": (d, f),
        }
        ends: Shapes = {"embed.weight": (self.vocab, d), "norm.weight": (d,), "lm_head.weight": (self.vocab, d)}
        return [(ends, 1), (block, self.layers)]


# Source: Zhao et al. (2024), arXiv:2403.03507, configuration files (the table swaps two numbers of 1b).
PRESETS = {
    "60m": Sizes(512, 1376, 8, 32_000),
    "130m": Sizes(768, 2048, 12, 32_000),
    "350m": Sizes(1024, 2736, 24, 32_000),
    "1b": Sizes(2048, 5461, 24, 32_000),
    "7b": Sizes(4096, 11008, 32, 32_000),
}
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}  # the words of the command line for torch's

"""Model sizes of the GaLore literature, for `lowrank-core estimate`."""

from __future__ import annotations

from typing import NamedTuple

VOCAB = 32_000
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}  # our words for torch's


class Llama(NamedTuple):
    """Sizes of a Llama decoder with an untied head."""

    hidden: int
    intermediate: int
    layers: int


# Source: Zhao et al. (2024), arXiv:2403.03507, table 5 and the authors' configuration files (1b has 24 layers there).
PRESETS = {
    "60m": Llama(512, 1376, 8),
    "130m": Llama(768, 2048, 12),
    "350m": Llama(1024, 2736, 24),
    "1b": Llama(2048, 5461, 24),
    "7b": Llama(4096, 11008, 32),
}

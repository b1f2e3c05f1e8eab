"""The models and horizons that are compared on: small enough for many runs, so rankings may flip at size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Size:
    """A decoder and the work it is trained with; `share` is the rank as a share of the width."""

    name: str
    dim: int
    layers: int
    heads: int
    seq_len: int
    steps: int
    batch_size: int = 8
    eval_batches: int = 16
    share: float = 0.25

    @property
    def rank(self) -> int:
        """Rank of every projection."""
        return round(self.share * self.dim)

    def options(self) -> dict[str, Any]:
        """Those of `lowrank-core train` that are the same for everybody, spelt out: a default that changes later makes
        no old run another."""
        return {
            "val_fraction": 0.1, "dim": self.dim, "layers": self.layers, "heads": self.heads,
            "ffn": -(-8 * self.dim // (3 * 16)) * 16, "seq_len": self.seq_len, "steps": self.steps,
            "batch_size": self.batch_size, "accumulation": 1, "warmup": self.steps // 10, "min_lr_ratio": 0.1,
            "clip": 1.0, "precision": "fp32", "eval_every": max(1, self.steps // 10),
            "eval_batches": self.eval_batches, "eps": 1e-8,
        }  # fmt: skip


HORIZON = 400  # steps; the same windows at both sizes
WINDOW = 64  # bytes
SMALL = Size("small", dim=96, layers=3, heads=4, seq_len=WINDOW, steps=HORIZON)  # 0.38 million parameters
LARGE = Size("large", dim=256, layers=4, heads=4, seq_len=WINDOW, steps=HORIZON)  # 3.3 million

SIZES = (SMALL.name, LARGE.name)
THIN = "-d8"  # of the name


def longer(size: Size) -> Size:
    """With twice the steps."""
    return replace(size, name=f"{size.name}-2x", steps=2 * size.steps)


def thinner(size: Size) -> Size:
    """With half the rank."""
    return replace(size, name=size.name + THIN, share=size.share / 2)

"""The report's colors: one for each optimizer of a run, on light and on dark paper.

The five hues and the neutral one are told apart by readers with any of the three color deficiencies; where a run has
more optimizers, the hues come again with other dashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

NEUTRAL, HUES = "neutral", ("hue1", "hue2", "hue3", "hue4", "hue5")
LIGHT = {
    "ink": "#37352f", "faint": "#6f6e69", "grid": "#e9e8e5", "paper": "#ffffff", "shade": "#f6f5f2",
    NEUTRAL: "#7a7974", **dict(zip(HUES, ("#0b6e99", "#d9630d", "#b045ee", "#5f3a12", "#2f9e44"), strict=True)),
}  # fmt: skip
DARK = {
    "ink": "#dcdad5", "faint": "#9b9a97", "grid": "#343432", "paper": "#191919", "shade": "#242423",
    NEUTRAL: "#a3a19b", **dict(zip(HUES, ("#3f9fd0", "#f58b4a", "#b45cf5", "#f2d24a", "#3fe0a0"), strict=True)),
}  # fmt: skip
DASHES: tuple[tuple[float, ...], ...] = ((), (4, 1.5), (1, 1.2), (6, 1.5, 1, 1.5))  # in widths of the line


class Look(NamedTuple):
    """How an optimizer is drawn: `role` is a key of `LIGHT` and `DARK`, `dashes` are lengths on, off, on, ..."""

    role: str
    dashes: tuple[float, ...]


def looks(runs: Sequence[str]) -> dict[str, Look]:
    """AdamW is always neutral; the others have hues in their order."""
    others = [run for run in runs if run != "adamw"]
    chosen = {run: Look(HUES[i % len(HUES)], DASHES[i // len(HUES) % len(DASHES)]) for i, run in enumerate(others)}
    return {run: chosen.get(run, Look(NEUTRAL, ())) for run in runs}

"""The models whose matrices `bench` steps. Imports nothing heavy."""

from __future__ import annotations

from lowrank_core.cli.presets import PRESETS, Sizes

Shapes = list[tuple[int, int]]

MODELS = {"llama-130m": PRESETS["130m"], "small": Sizes(256, 680, 4, 32_000)}


def matrices(sizes: Sizes) -> Shapes:
    """Of attention and feed-forward, which are what a method projects: 84.9 million weights in 84 for Llama-130M."""
    _, (block, layers) = sizes.parts()
    return [(shape[0], shape[1]) for shape in block.values() if len(shape) == 2] * layers


def elements(shapes: Shapes) -> int:
    """Weights in all of them."""
    return sum(m * n for m, n in shapes)

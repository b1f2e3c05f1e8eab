"""A step of every method of the package against torch's fused AdamW and against GaLore.

The weights are those of Llama-130M's attention and feed-forward layers, 84.9 million in 84 matrices, or a small model
of 3.1 million in 28. Times are of whole `step()` calls: between two refreshes, and with one for every weight. A method
runs with its own defaults besides the rank; AdamW and a method without refreshes do the same in both cases.

    python bench/bench_optimizers.py [--threads 2] [--rounds 9] [--rank 128] [--small] [--methods galore apollo]
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from _harness import Bench
from lowrank_core.optim import METHODS
from torch import nn

LARGE = ([(768, 768)] * 4 + [(2048, 768)] * 2 + [(768, 2048)]) * 12
SMALL = ([(256, 256)] * 4 + [(680, 256)] * 2 + [(256, 680)]) * 4
LR = 1e-3
# Ways to call a method that are methods of their own to their users.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "fira, residual code": ("fira", {"residual": "code"}),
    "apollo-mini": ("apollo", {"rank": 1, "scale_type": "tensor", "scale": 128}),
    "apollo, scale_cap 10": ("apollo", {"scale_cap": 10}),
}
BASELINE = "fused AdamW"


def params_of(shapes: Sequence[tuple[int, int]]) -> list[nn.Parameter]:
    """Weights with their gradients, the same for every rival."""
    draw = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=draw)) for shape in shapes]
    for param in params:
        param.grad = torch.randn(param.shape, generator=draw)
    return params


def step_of(method: str, shapes: Sequence[tuple[int, int]], **keys: Any) -> Callable[[], object]:
    """A step of `method`, whose state is there already; keys that it does not have are left out."""
    known = inspect.signature(METHODS[method]).parameters
    optimizer = METHODS[method](params_of(shapes), **{key: value for key, value in keys.items() if key in known})
    optimizer.step()
    return optimizer.step


def rivals_of(
    methods: Sequence[str], shapes: Sequence[tuple[int, int]], rank: int, gap: int
) -> dict[str, Callable[[], object]]:
    """Their steps by name."""
    shared = {"lr": LR, "rank": rank, "update_proj_gap": gap}
    rivals = {BASELINE: torch.optim.AdamW(params_of(shapes), lr=LR, fused=True).step}
    rivals |= {method: step_of(method, shapes, **shared) for method in methods}
    for name, (method, keys) in VARIANTS.items():
        if method in methods:
            rivals[name] = step_of(method, shapes, **{**shared, **keys})
    return rivals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="for torch and for lowrank_core")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds per case")
    parser.add_argument("--rank", type=int, default=128, help="of all methods that have one")
    parser.add_argument("--small", action="store_true", help="the small model")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), help="all by default")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shapes, size = (SMALL, "3.1 M in 28") if options.small else (LARGE, "84.9 M in 84")
    bench = Bench("bench_optimizers", rounds=options.rounds, threads=options.threads)
    shares: dict[str, dict[str, float]] = {}
    for case, gap in (("between refreshes", 10**9), ("with a refresh", 1)):
        rivals = rivals_of(options.methods, shapes, options.rank, gap)
        rows = bench.compare(f"{size}, rank {options.rank}, {case}", rivals, baseline=BASELINE, error={}, limit=0.0)
        others = [name for name in (BASELINE, "galore") if name in rows]
        for name, row in rows.items():
            shares[f"{name}, {case}"] = found = {other: row.median_s / rows[other].median_s for other in others}
            print(f"{name}, {case}: " + ", ".join(f"{share:.2f} of {other}" for other, share in found.items()))
    bench.finish(shares=shares)


if __name__ == "__main__":
    main()

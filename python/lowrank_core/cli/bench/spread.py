"""How evenly refreshes are spread: the slowest step of a run over its median."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

from torch import Tensor

from lowrank_core.cli.bench.rivals import LR, gradients, parameters
from lowrank_core.cli.bench.shapes import Shapes
from lowrank_core.cli.bench.timing import seconds_of
from lowrank_core.optim import METHODS

STEPS, GAP, RUNS = 400, 200, 3


class Spread(NamedTuple):
    """Of the steps behind the first one, each the least of identical runs: what else ran shows in one of them."""

    median_s: float
    slowest_s: float
    ratio: float  # the slowest over the median
    of_one_run: float  # the same in the first run alone


def staggering(methods: Sequence[str]) -> list[str]:
    """Those that can spread their refreshes over the gap."""
    return [name for name in methods if "stagger" in inspect.signature(METHODS[name]).parameters]


def spread_of(method: str, shapes: Shapes, rank: int, tick: Callable[[float], object]) -> Spread:
    """Of `STEPS` steps with a gap of `GAP`; `tick` is called with the share that is done."""
    grads = gradients(shapes)
    runs = [_run(method, shapes, grads, rank, tick)[1:] for _ in range(RUNS)]
    least = [min(same) for same in zip(*runs, strict=True)]
    middle = median(least)
    return Spread(middle, max(least), max(least) / middle, max(runs[0]) / median(runs[0]))


def _run(
    method: str, shapes: Shapes, grads: Sequence[Tensor], rank: int, tick: Callable[[float], object]
) -> list[float]:
    keys: dict[str, Any] = {"lr": LR, "rank": rank, "update_proj_gap": GAP, "stagger": True}
    known = inspect.signature(METHODS[method]).parameters
    optimizer = METHODS[method](parameters(shapes, grads), **{k: v for k, v in keys.items() if k in known})
    found = []
    for _ in range(STEPS):
        found.append(seconds_of(optimizer.step))
        tick(1 / STEPS / RUNS)
    return found

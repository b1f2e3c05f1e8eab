"""Stacks of E matrices against the same matrices as parameters of their own: a step between searches, one with all of
them, and taking a state dict.

Both train the same numbers, and the error is the largest difference of a weight after three steps.

    python bench/bench_stacked.py [--threads 2] [--rounds 15]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from _harness import Bench
from lowrank_core.optim import METHODS, LowRankOptimizer
from torch import Tensor, nn

CASES = {"128 x [64, 48]": (128, 64, 48), "32 x [512, 256]": (32, 512, 256), "8 x [1024, 512]": (8, 1024, 512)}
BASELINE, STACKED = "parameters of their own", "a stack"
Call = Callable[[], object]


def made(method: str, shape: tuple[int, int, int], stacked: bool, gap: int) -> tuple[LowRankOptimizer, list[Tensor]]:
    """An optimizer of one stack, or of its matrices, which have their gradients."""
    draw = torch.Generator().manual_seed(0)
    weight, grad = torch.randn(shape, generator=draw), torch.randn(shape, generator=draw)
    weights = [weight] if stacked else list(weight.clone().unbind())
    params = [nn.Parameter(part.clone()) for part in weights]
    for param, part in zip(params, [grad] if stacked else grad.unbind(), strict=True):
        param.grad = part.clone()
    keys = {"rank": 16, "update_proj_gap": gap} if method == "galore" else {}
    return METHODS[method](params, stacked=stacked, **keys), params  # type: ignore[call-arg]


def apart(method: str, shape: tuple[int, int, int]) -> float:
    """The largest difference of a weight after three steps."""
    (one, (stack,)), (other, matrices) = (made(method, shape, stacked, 2) for stacked in (True, False))
    for _ in range(3):
        one.step()
        other.step()
    return float((stack.detach() - torch.stack(list(matrices)).detach()).abs().max())


def entries(saved: dict[str, Any]) -> int:
    """How many tensors and numbers a state dict has."""
    return sum(len(state) for state in saved["state"].values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="for torch and for lowrank_core")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds per case")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench = Bench("bench_stacked", rounds=options.rounds, threads=options.threads)
    for size, shape in CASES.items():
        for method, what, gap in (("galore", "step", 10**6), ("galore", "search", 1), ("muon", "step", 1)):
            rivals: dict[str, Call] = {}
            for name, stacked in ((BASELINE, False), (STACKED, True)):
                optimizer, _ = made(method, shape, stacked, gap)
                optimizer.step()
                rivals[name] = optimizer.step
            error = apart(method, shape)
            bench.compare(
                f"{method}, {what}, {size}", rivals, baseline=BASELINE,
                error={STACKED: lambda _, found=error: found}, limit=0.0,
            )  # fmt: skip
        states = {name: made("galore", shape, name == STACKED, 1)[0] for name in (BASELINE, STACKED)}
        for optimizer in states.values():
            optimizer.step()
        expected = entries(states[BASELINE].state_dict())
        bench.compare(
            f"galore, state_dict, {size}", {name: one.state_dict for name, one in states.items()}, baseline=BASELINE,
            error={STACKED: lambda saved, wanted=expected: abs(entries(saved) - wanted)}, limit=0.0,
        )  # fmt: skip
    bench.finish()


if __name__ == "__main__":
    main()

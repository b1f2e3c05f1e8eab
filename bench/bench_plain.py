"""A step of weights that are not projected against torch's fused AdamW and its loop over single tensors.

Times are of whole `step()` calls, with the check of all gradients. The error is the largest difference to the weights
of torch's loop, whose bits are to be kept.

    python bench/bench_plain.py [--threads 2] [--rounds 25]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from _harness import Bench
from lowrank_core.optim import GaLoreAdamW
from torch import nn

CASES = {"16000 x 512": [(16000, 512)], "200 vectors of 768": [(768,)] * 200}
KEYS = {"lr": 1e-3, "weight_decay": 0.1}
BASELINE, LOOP = "fused AdamW", "single-tensor AdamW"
Step = Callable[[], object]


def params_of(shapes: list[tuple[int, ...]]) -> list[nn.Parameter]:
    """Weights with their gradients, the same for every rival."""
    draw = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=draw)) for shape in shapes]
    for param in params:
        param.grad = torch.randn(param.shape, generator=draw)
    return params


def optimizers(shapes: list[tuple[int, ...]]) -> dict[str, torch.optim.Optimizer]:
    return {
        BASELINE: torch.optim.AdamW(params_of(shapes), fused=True, **KEYS),
        LOOP: torch.optim.AdamW(params_of(shapes), foreach=False, **KEYS),
        "ours": GaLoreAdamW(params_of(shapes), rank=None, **KEYS),
    }


def apart(shapes: list[tuple[int, ...]]) -> float:
    """The largest difference between our weights and the loop's after three steps."""
    made = optimizers(shapes)
    for _ in range(3):
        for optimizer in (made[LOOP], made["ours"]):
            optimizer.step()
    ours, theirs = (made[name].param_groups[0]["params"] for name in ("ours", LOOP))
    return max(float((x - y).detach().abs().max()) for x, y in zip(ours, theirs, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="for torch and for lowrank_core")
    parser.add_argument("--rounds", type=int, default=25, help="timed rounds per case")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench = Bench("bench_plain", rounds=options.rounds, threads=options.threads)
    for case, shapes in CASES.items():
        steps: dict[str, Step] = {name: optimizer.step for name, optimizer in optimizers(shapes).items()}
        for step in steps.values():
            step()
        difference = apart(shapes)
        bench.compare(case, steps, baseline=BASELINE, error={"ours": lambda _, found=difference: found}, limit=0.0)
    bench.finish()


if __name__ == "__main__":
    main()

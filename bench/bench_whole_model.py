"""A step of the whole of Llama-130M, embedding, head and norms too, with the share of each part named.

134 million weights: 84.9 in 84 matrices that are projected to rank 128, and 49.2 in embedding, head and 25 norms that
are not. Between refreshes against torch's fused AdamW of the same model; then the slowest step over the median with a
refresh every 20 steps, all at once or spread out (`stagger`). Errors are those of bench_subspace_step and bench_plain,
which compare the same steps with references; none is taken here.

    python bench/bench_whole_model.py [--threads 2] [--rounds 9]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from _harness import Bench, Row
from bench_plain import params_of
from bench_subspace_step import LARGE, LR, SCALE, Problem
from lowrank_core import _core
from lowrank_core.optim import GaLoreAdamW
from lowrank_core.optim.devices import nonfinite
from torch import nn

RANK, GAP = 128, 20
PLAIN: list[tuple[int, ...]] = [(32000, 768), (32000, 768), *[(768,)] * 25]
TARGET = 1.8  # of fused AdamW's time
OVER_PARTS = 1.15  # of two products and fused AdamW of what is not projected


def galore(matrices: list[nn.Parameter], others: list[nn.Parameter], **keys: object) -> GaLoreAdamW:
    groups = [{"params": matrices, "rank": RANK}, {"params": others}]
    optimizer = GaLoreAdamW([group for group in groups if group["params"]], lr=LR, scale=SCALE, **keys)
    optimizer.step()
    return optimizer


def between_refreshes(bench: Bench, problem: Problem) -> dict[str, Row]:
    seldom = {"update_proj_gap": 10**9}
    others = params_of(PLAIN)
    rivals = {
        "fused AdamW": torch.optim.AdamW(problem.params() + params_of(PLAIN), lr=LR, fused=True).step,
        "GaLoreAdamW": galore(problem.params(), others, **seldom).step,
        "projected part": galore(problem.params(), [], **seldom).step,
        "two bf16 products": problem.products(torch.bfloat16),
        "two float32 products": problem.products(torch.float32),
        "plain part": galore([], params_of(PLAIN), rank=None, **seldom).step,
        "plain part, fused AdamW": torch.optim.AdamW(params_of(PLAIN), lr=LR, fused=True).step,
        "check of plain gradients": lambda: nonfinite([param.grad for param in others if param.grad is not None]),
    }
    return bench.compare("134 M, rank 128, medium", rivals, baseline="fused AdamW", error={}, limit=0.0)


def slowest(problem: Problem, stagger: bool) -> dict[str, float]:
    """Of three rounds of refreshes, behind the first."""
    optimizer = galore(problem.params(), params_of(PLAIN), update_proj_gap=GAP, stagger=stagger)
    for _ in range(GAP):
        optimizer.step()
    seconds = []
    for _ in range(3 * GAP):
        began = time.perf_counter()
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds)
    return {"median_s": median, "slowest_s": max(seconds), "ratio": max(seconds) / median}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="for torch and for lowrank_core")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("medium")
    bench = Bench("bench_whole_model", rounds=options.rounds, threads=options.threads, seconds=60.0)
    problem = Problem(LARGE, RANK)
    rows = between_refreshes(bench, problem)
    times = {name: row.median_s for name, row in rows.items()}
    quicker = min(times["two bf16 products"], times["two float32 products"])
    shares = {
        "whole step / fused AdamW": times["GaLoreAdamW"] / times["fused AdamW"],
        "whole step / (two products + plain part by fused AdamW)": times["GaLoreAdamW"]
        / (quicker + times["plain part, fused AdamW"]),
        "projected part / two products": times["projected part"] / quicker,
        "plain part / fused AdamW of it": times["plain part"] / times["plain part, fused AdamW"],
    }
    targets = dict(zip(shares, (TARGET, OVER_PARTS), strict=False))
    for name, value in shares.items():
        aim = f", {'reaches' if value <= targets[name] else 'MISSES'} {targets[name]}" if name in targets else ""
        print(f"{name}: {value:.2f}{aim}")
    spread = {name: slowest(problem, on) for name, on in (("all at once", False), ("stagger", True))}
    for name, found in spread.items():
        print(f"slowest step / median, gap {GAP}, {name}: {found['ratio']:.2f}")
    bench.finish(isa=_core.isa(), shares=shares, targets=targets, slowest=spread)


if __name__ == "__main__":
    main()

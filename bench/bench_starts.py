"""PiSSA's start of one layer: `init_lora_`, PEFT's own by torch.svd_lowrank, and the exact decomposition.

All of a start is timed: the decomposition, the factors, and the weight that keeps the rest. The exact decomposition is
timed alone, and called once, because it takes so long.

    python bench/bench_starts.py [--size 4096] [--rank 16] [--threads 2] [--rounds 7]
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import torch
from _harness import Bench, peer
from lowrank_core import adapters
from torch import Tensor, nn

TARGET = 0.02  # of the time of torch.linalg.svd
USABLE = 0.05  # no rest may be further from the smallest one


def matrix(size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight with singular values 1 / √j, and these."""
    draw = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(size, size, generator=draw)).Q for _ in range(2))
    values = torch.arange(1, size + 1, dtype=torch.float32).rsqrt()
    return left * values @ right.T, values


def layer(weight: Tensor, rank: int) -> adapters.LoRALinear:
    base = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    base.weight.data = weight.clone()
    return adapters.LoRALinear(base, rank=rank)


def peft_layer(peft: Any, weight: Tensor, rank: int) -> Any:
    base = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    base.weight.data = weight.clone()
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=["0"])
    return peft.get_peft_model(nn.Sequential(base), config).base_model.model[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="for torch and for lowrank_core")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds, without the exact decomposition")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    weight, values = matrix(options.size)
    optimum = math.sqrt(float((values[options.rank :].double() ** 2).sum()))
    bench = Bench("bench_starts", rounds=options.rounds, threads=options.threads, seconds=40.0)
    ours, peft = layer(weight, options.rank), peer("peft")

    def start(method: str, **keys: Any) -> Tensor:
        ours.base_layer.weight.data.copy_(weight)
        adapters.init_lora_(ours, method, **keys)
        return ours.base_layer.weight.detach()

    rivals: dict[str, Any] = {
        "lowrank_core": lambda: start("pissa"),
        "lowrank_core niter=2": lambda: start("pissa", niter=2),
        "lowrank_core olora": lambda: start("olora"),
    }
    if peft is not None:
        theirs = peft_layer(peft, weight, options.rank)

        def of_peft(niter: int) -> Tensor:
            theirs.base_layer.weight.data = weight.clone()
            theirs.pissa_init("default", f"pissa_niter_{niter}")
            found: Tensor = theirs.base_layer.weight.detach()
            return found

        rivals |= {f"peft niter={niter}": lambda niter=niter: of_peft(niter) for niter in (4, 16)}

    def excess(rest: object) -> float:
        assert isinstance(rest, Tensor)
        return float(torch.linalg.vector_norm(rest, dtype=torch.float64)) / optimum - 1

    errors = {name: excess for name in rivals if name != "lowrank_core olora"}  # which looks for other vectors
    rows = bench.compare(
        f"{options.size}² rank {options.rank}", rivals, baseline="lowrank_core", error=errors, limit=USABLE
    )
    exact = seconds_of_exact(weight)
    share = rows["lowrank_core"].median_s / exact
    print(f"torch.linalg.svd alone: {exact:.1f} s")
    print(f"share of its time: {share:.4f}, {'reaches' if share <= TARGET else 'MISSES'} {TARGET}")
    bench.finish(exact_s=exact, share_of_exact=share, target=TARGET)


def seconds_of_exact(weight: Tensor) -> float:
    before = time.perf_counter()
    torch.linalg.svd(weight, full_matrices=False)
    return time.perf_counter() - before


if __name__ == "__main__":
    main()

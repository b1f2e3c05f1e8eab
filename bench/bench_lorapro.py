"""A step of LoRAProAdamW against LoRA-Pro's formulas in plain torch, pair by pair, before torch's AdamW.

Times are of whole `step()` calls. The plain statement solves Sylvester's equation by two symmetric eigenproblems of a
pair in float64, as ours does, and writes its directions into `.grad`; torch's AdamW then takes them. The error is that
of the change of all weights in three steps, as Frobenius norms, to the same statement on a model in float64. AdamW on
the factors without any directions is there for its time alone.

    python bench/bench_lorapro.py [--threads 2] [--rounds 25]
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import torch
from _harness import Bench
from bench_scaled_adamw import CASES, KEYS, LIMITS, SPARE, adapted
from lowrank_core.adapters import LoRAProAdamW, Pair, find_pairs
from torch import Tensor, nn

RIDGE = 2.0**-23  # one for all dtypes, so that the statement in float64 takes the same steps
STATED, PLAIN, OURS = "torch, pair by pair", "AdamW on factors", "ours"


def directions(pair: Pair) -> tuple[Tensor, Tensor]:
    """hA and hB of a pair by theorems 2.1 and 2.3 of arXiv:2407.18242, float64."""
    assert pair.a.grad is not None and pair.b.grad is not None
    a, b, ga, gb = (x.detach().double() for x in (pair.a, pair.b, pair.a.grad, pair.b.grad))
    eye, square = torch.eye(len(a), dtype=torch.float64), pair.scale**2
    c, d = b.mT @ b, a @ a.mT
    c, d = c + RIDGE * torch.trace(c) * eye, d + RIDGE * torch.trace(d) * eye
    direct = torch.linalg.solve(c, ga) / square
    (left, p), (right, q) = torch.linalg.eigh(c), torch.linalg.eigh(d)
    x = -p @ ((p.mT @ (direct @ a.mT) @ q) / (left[:, None] + right)) @ q.mT
    outside = gb - b @ torch.linalg.solve(c, b.mT @ gb)
    return direct + x @ a, torch.linalg.solve(d, outside, left=False) / square - b @ x


def stepping(model: nn.Module, rival: str, calls: int) -> Callable[[], list[Tensor]]:
    params = [p for p in model.parameters() if p.requires_grad]
    draw = torch.Generator().manual_seed(1)
    grads = [torch.randn(p.shape, generator=draw).to(p.dtype) for p in params]
    copies = [[grad.clone() for grad in grads] for _ in range(calls)]
    pairs = find_pairs(model)
    optimizer: torch.optim.Optimizer
    optimizer = LoRAProAdamW(model, ridge=RIDGE, **KEYS) if rival == OURS else torch.optim.AdamW(params, **KEYS)

    def step() -> list[Tensor]:
        for p, grad in zip(params, copies.pop(), strict=True):
            p.grad = grad
        for pair in pairs if rival == STATED else ():
            for p, direction in zip((pair.a, pair.b), directions(pair), strict=True):
                p.grad.copy_(direction)  # type: ignore[union-attr]
        optimizer.step()
        return params

    return step


def moved(model: nn.Module, rival: str, steps: int = 3) -> Tensor:
    """The change of all weights, float64."""
    own = copy.deepcopy(model)
    before = [p.detach().double().clone() for p in own.parameters() if p.requires_grad]
    step = stepping(own, rival, steps)
    after = [step() for _ in range(steps)][-1]
    return torch.cat([(p.detach().double() - old).flatten() for p, old in zip(after, before, strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="for torch and for lowrank_core")
    parser.add_argument("--rounds", type=int, default=25, help="timed rounds per case")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench = Bench("bench_lorapro", rounds=options.rounds, threads=options.threads)
    for case, (count, size, rank, dtype) in CASES.items():
        model = adapted(count, size, rank, dtype)
        exact = moved(copy.deepcopy(model).double(), STATED)

        def apart(rival: str, model: nn.Module = model, exact: Tensor = exact) -> float:
            return float((moved(model, rival) - exact).norm() / exact.norm())

        errors = {rival: lambda _, rival=rival, apart=apart: apart(rival) for rival in (STATED, OURS)}
        rivals = {
            rival: stepping(copy.deepcopy(model), rival, options.rounds + SPARE) for rival in (STATED, PLAIN, OURS)
        }
        bench.compare(case, rivals, baseline=STATED, error=errors, limit=LIMITS[dtype])
    bench.finish()


if __name__ == "__main__":
    main()

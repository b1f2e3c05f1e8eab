"""Optimizer steps in a subspace against fused AdamW, galore_torch and the two products that a step cannot do without.

The weights are those of Llama-130M's attention and feed-forward layers, 84.9 million in 84 matrices, and a small model
of 3.1 million in 28. Times are of whole `step()` calls between refreshes. An error is the largest difference of a
weight from the float64 reference's after one step, in units of lr; peers that take other steps have none.

    python bench/bench_subspace_step.py [--threads 2] [--rounds 9] [--isa avx512]

galore_torch takes part where it is installed: pip install '.[bench]'.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Sequence

import lowrank_core
import torch
from _harness import Bench, Row, peer
from lowrank_core import _core
from lowrank_core.cli.bench.shapes import MODELS, matrices
from lowrank_core.optim import GaLoreAdamW
from lowrank_core.reference.subspace_step import subspace_step
from torch import nn

LARGE, SMALL = matrices(MODELS["llama-130m"]), matrices(MODELS["small"])
LR, SCALE = 1e-3, 0.25
WRONG = 1e-3  # a step that is further from the reference, in units of lr, is another step

# Largest share of another's time in the same case: (case, ours, other).
TARGETS = {
    ("rank 128 medium", "GaLoreAdamW", "two bf16 products"): 1.15,
    ("rank 64 medium", "GaLoreAdamW", "two bf16 products"): 1.25,
    ("rank 128 highest", "GaLoreAdamW", "two float32 products"): 0.9,
    ("rank 64 highest", "GaLoreAdamW", "two float32 products"): 0.9,
    ("rank 128 highest", "GaLoreAdamW int8", "GaLoreAdamW"): 1.07,
    ("small rank 64", "GaLoreAdamW", "fused AdamW"): 2.0,
    ("small rank 16", "GaLoreAdamW", "fused AdamW"): 1.4,
}

# A step, and the error of what it leaves where it is the step in question.
Rival = tuple[Callable[[], object], Callable[[object], float] | None]


class Problem:
    """Weights, their gradients and orthonormal bases, the same for every rival."""

    def __init__(self, shapes: Sequence[tuple[int, int]], rank: int) -> None:
        draw = torch.Generator().manual_seed(0)
        self.rank, self.right = rank, [m >= n for m, n in shapes]
        self.weights = [torch.randn(shape, generator=draw) for shape in shapes]
        self.grads = [torch.randn(shape, generator=draw) for shape in shapes]
        self.bases = [torch.linalg.qr(torch.randn(min(shape), rank, generator=draw)).Q.contiguous() for shape in shapes]

    def params(self) -> list[nn.Parameter]:
        params = [nn.Parameter(weight.clone()) for weight in self.weights]
        for param, grad in zip(params, self.grads, strict=True):
            param.grad = grad
        return params

    def galore(self, **keys: object) -> tuple[Callable[[], object], Callable[[object], float]]:
        """A step of ours, and its error."""
        optimizer = GaLoreAdamW(self.params(), lr=LR, rank=self.rank, scale=SCALE, update_proj_gap=10**9, **keys)
        optimizer.step()
        return optimizer.step, lambda _: self.kernel_error()

    def kernel_error(self) -> float:
        """Of the kernel's step of the first weight from random moments, whose directions are well-conditioned."""
        draw = torch.Generator().manual_seed(1)
        weight, shape, side = self.weights[0].clone(), self.low_shape(0), "right" if self.right[0] else "left"
        moments = [torch.randn(shape, generator=draw), torch.rand(shape, generator=draw) + 0.1]
        given = (self.weights[0], self.grads[0], self.bases[0], *(x.clone() for x in moments))
        expected = subspace_step(*given, side=side, step=9, lr=LR, scale=SCALE).param
        lists = ([weight], [self.grads[0]], [self.bases[0]], *([x] for x in moments))
        lowrank_core.subspace_step_(*lists, sides=[side], steps=[9], lr=LR, scale=SCALE)
        return float((weight.double() - expected).abs().max()) / LR

    def galore_torch(self) -> Callable[[], object] | None:
        module = peer("galore_torch")
        if module is None:
            return None
        group = {
            "params": self.params(),
            "rank": self.rank,
            "update_proj_gap": 10**9,
            "scale": SCALE,
            "proj_type": "std",
        }
        optimizer = module.GaLoreAdamW([group], lr=LR, no_deprecation_warning=True)
        optimizer.step()
        return optimizer.step

    def adamw(self) -> Callable[[], object]:
        return torch.optim.AdamW(self.params(), lr=LR, fused=True).step

    def products(self, dtype: torch.dtype) -> Callable[[], object]:
        """R = Pᵀ G and W <- W - P N, by torch into what exists already."""
        lists = ([x.to(dtype) for x in each] for each in (self.weights, self.grads, self.bases))
        jobs = list(zip(*lists, self.right, strict=True))
        lows = [torch.empty(self.low_shape(i), dtype=dtype) for i in range(len(jobs))]

        def run() -> None:
            for (w, g, p, right), low in zip(jobs, lows, strict=True):
                torch.mm(g, p, out=low) if right else torch.mm(p.T, g, out=low)
                torch.addmm(w, *((low, p.T) if right else (p, low)), alpha=-1e-9, out=w)

        return run

    def low_shape(self, i: int) -> tuple[int, int]:
        m, n = self.weights[i].shape
        return (m, self.rank) if self.right[i] else (self.rank, n)

    def flops(self, rivals: Iterable[str]) -> dict[str, float]:
        """Of the two products, for those that take them."""
        return {name: 4.0 * self.rank * self.elements() for name in rivals if name != "fused AdamW"}

    def nbytes(self, rivals: Iterable[str]) -> dict[str, float]:
        """What has to move: G once, W there and back; both moments there and back, of which int8 has a quarter."""
        low = float(sum(math.prod(self.low_shape(i)) for i in range(len(self.weights))))
        size = {"fused AdamW": 4.0 * self.elements(), "two float32 products": 0.0, "two bf16 products": 0.0}
        moments = {name: size.get(name, (1.0 if "int8" in name else 4.0) * low) for name in rivals}
        item = {"two bf16 products": 2.0}
        return {name: item.get(name, 4.0) * 3 * self.elements() + 4 * held for name, held in moments.items()}

    def elements(self) -> int:
        return sum(w.numel() for w in self.weights)


def run(bench: Bench, case: str, rivals: dict[str, Rival],
        baseline: str, problem: Problem) -> dict[str, Row]:  # fmt: skip
    errors = {name: error for name, (_, error) in rivals.items() if error}
    return bench.compare(
        case,
        {name: call for name, (call, _) in rivals.items()},
        baseline=baseline,
        error=errors,
        limit=WRONG,
        flops=problem.flops(rivals),
        nbytes=problem.nbytes(rivals),
    )


def large(bench: Bench, rank: int, precision: str) -> dict[str, Row]:
    torch.set_float32_matmul_precision(precision)
    problem = Problem(LARGE, rank)
    rivals: dict[str, Rival] = {
        "fused AdamW": (problem.adamw(), None),
        "two float32 products": (problem.products(torch.float32), None),
        "GaLoreAdamW": problem.galore(),
    }
    if precision == "medium":
        rivals["two bf16 products"] = (problem.products(torch.bfloat16), None)
    else:
        rivals["GaLoreAdamW int8"] = problem.galore(moment_dtype="int8")
    if step := problem.galore_torch():
        rivals["galore_torch"] = (step, None)
    return run(bench, f"84.9 M, rank {rank} {precision}", rivals, "fused AdamW", problem)


def small(bench: Bench, rank: int) -> dict[str, Row]:
    torch.set_float32_matmul_precision("highest")
    problem = Problem(SMALL, rank)
    rivals: dict[str, Rival] = {
        "fused AdamW": (problem.adamw(), None),
        "two float32 products": (problem.products(torch.float32), None),
        "GaLoreAdamW": problem.galore(),
    }
    if step := problem.galore_torch():
        rivals["galore_torch"] = (step, None)
    return run(bench, f"3.1 M in 28, rank {rank}", rivals, "fused AdamW", problem)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="for torch and for lowrank_core")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds per case")
    parser.add_argument("--isa", choices=_core.isa_levels(), help="instruction-set level of lowrank_core")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.isa:
        _core.set_isa(options.isa)
    bench = Bench("bench_subspace_step", rounds=options.rounds, threads=options.threads)
    cases = {f"rank {rank} {way}": large(bench, rank, way) for rank in (128, 64) for way in ("medium", "highest")}
    cases |= {f"small rank {rank}": small(bench, rank) for rank in (64, 16)}
    shares, targets = {}, {}
    for (case, ours, other), target in TARGETS.items():
        name = f"{case}: {ours} / {other}"
        shares[name], targets[name] = cases[case][ours].median_s / cases[case][other].median_s, target
        print(f"{name}: {shares[name]:.2f}, {'reaches' if shares[name] <= target else 'MISSES'} {target}")
    bench.finish(isa=_core.isa(), shares=shares, targets=targets)


if __name__ == "__main__":
    main()

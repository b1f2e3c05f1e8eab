"""Randomized SVD against torch.svd_lowrank, scikit-learn and the exact decomposition, with the error of each.

An error is the excess ‖a - u s vᵀ‖_F over the smallest possible for the rank, relative to it: 0 is the optimum, which
is known because the singular values are chosen. Torch and lowrank_core run at the same matmul precision.

    python bench/bench_rsvd.py [--threads 2] [--rounds 15] [--isa avx512]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence

import lowrank_core
import torch
from _harness import Bench, Row
from lowrank_core import _core
from lowrank_core.ops import range_finder_list
from sklearn.utils.extmath import randomized_svd
from torch import Tensor

RANK, OVERSAMPLE = 128, 10
SIZE = 4096
LAYER = [(768, 768)] * 4 + [(2048, 768)] * 2 + [(768, 2048)]  # attention, then gate, up and down of Llama-130M
MOVED = 0.02  # relative size of what a matrix changes by between two refreshes
SPIN = 0.05  # seconds for which scikit-learn's thread pool turns on after a call
USABLE = 0.05  # no answer may be further from the optimum

# Largest share of the baseline's time.
TARGETS = {"highest": 0.37, "medium": 0.55, "warm": 0.75, "layer": 0.07}


def matrix(m: int, n: int, seed: int) -> tuple[Tensor, float]:
    """A float32 matrix with singular values 1 / j and random vectors, and its smallest error for RANK."""
    draw = torch.Generator().manual_seed(seed)
    k = min(m, n)
    left, right = (torch.linalg.qr(torch.randn(rows, k, generator=draw)).Q for rows in (m, n))
    values = 1 / torch.arange(1, k + 1, dtype=torch.float32)
    return left * values @ right.T, math.sqrt(sum(1 / j**2 for j in range(RANK + 1, k + 1)))


def excess_of_basis(a: Tensor, q: Tensor, optimum: float) -> float:
    """Of the projection q qᵀ a."""
    return float(torch.linalg.vector_norm(a - q @ (q.T @ a), dtype=torch.float64)) / optimum - 1


def excess_of_triplet(a: Tensor, optimum: float) -> Callable[[object], float]:
    def error(answer: object) -> float:
        assert isinstance(answer, tuple)
        u, s, vh = (torch.as_tensor(x) for x in answer)
        rest = a - (u[:, :RANK] * s[:RANK]) @ vh[:RANK]
        return float(torch.linalg.vector_norm(rest, dtype=torch.float64)) / optimum - 1

    return error


def torch_svd_lowrank(a: Tensor) -> tuple[Tensor, ...]:
    u, s, v = torch.svd_lowrank(a, q=RANK + OVERSAMPLE, niter=2)
    return u, s, v.T


def large(bench: Bench, a: Tensor, optimum: float, precision: str) -> dict[str, Row]:
    """Cold decompositions of one large matrix."""
    numpy = a.numpy()  # of scikit-learn's normalizers for two iterations, the default one, none, loses half the rank
    torch.set_float32_matmul_precision(precision)
    error = excess_of_triplet(a, optimum)
    rivals: dict[str, Callable[[], object]] = {
        "torch.svd_lowrank": lambda: torch_svd_lowrank(a),
        "scikit-learn": lambda: randomized_svd(
            numpy, RANK, n_oversamples=OVERSAMPLE, n_iter=2, power_iteration_normalizer="LU", random_state=0
        ),
        "lowrank_core": lambda: lowrank_core.rsvd(a, RANK, oversample=OVERSAMPLE, niter=2),
        "lowrank_core niter=1": lambda: lowrank_core.rsvd(a, RANK, oversample=OVERSAMPLE, niter=1),
    }
    limits = dict.fromkeys(rivals, USABLE)
    limits["lowrank_core"] = error(torch_svd_lowrank(a))  # at equal error or not at all
    return bench.compare(
        f"{SIZE}² rank {RANK} {precision}", rivals, baseline="torch.svd_lowrank", error=error, limit=limits
    )


def warm(bench: Bench, a: Tensor, optimum: float, precision: str) -> dict[str, Row]:
    """A refresh from the basis of a matrix that has moved since."""
    torch.set_float32_matmul_precision(precision)
    step = torch.randn(a.shape, generator=torch.Generator().manual_seed(1))
    step *= MOVED * torch.linalg.vector_norm(a) / torch.linalg.vector_norm(step)
    basis = lowrank_core.range_finder(a + step, RANK, oversample=OVERSAMPLE, niter=2)

    def error(answer: object) -> float:
        assert isinstance(answer, Tensor)
        return excess_of_basis(a, answer, optimum)

    return bench.compare(
        f"refresh {SIZE}² {precision}",
        {
            "cold niter=2": lambda: lowrank_core.range_finder(a, RANK, oversample=OVERSAMPLE, niter=2),
            "cold niter=1": lambda: lowrank_core.range_finder(a, RANK, oversample=OVERSAMPLE, niter=1),
            "warm niter=1": lambda: lowrank_core.range_finder(a, RANK, oversample=OVERSAMPLE, niter=1, basis=basis),
        },
        baseline="cold niter=2",
        error=error,
        limit=USABLE,
    )


def layer(bench: Bench) -> dict[str, Row]:
    """The refresh of one transformer layer: a basis on the shorter side of each matrix, all in one call."""
    torch.set_float32_matmul_precision("medium")
    gradients, optima = zip(*(matrix(m, n, seed) for seed, (m, n) in enumerate(LAYER)), strict=True)
    sides = [g if g.shape[0] < g.shape[1] else g.T for g in gradients]
    ranks, moved = [RANK] * len(sides), [g + MOVED * g.flip(1) for g in sides]
    bases = range_finder_list(moved, ranks)

    def error(answer: object) -> float:
        assert isinstance(answer, Sequence)
        return max(excess_of_basis(*each) for each in zip(sides, answer, optima, strict=True))

    return bench.compare(
        "layer of Llama-130M, medium",
        {
            "torch.linalg.svd": lambda: [torch.linalg.svd(g, full_matrices=False).U[:, :RANK] for g in sides],
            "torch.svd_lowrank": lambda: [torch_svd_lowrank(g)[0][:, :RANK] for g in sides],
            "cold niter=2": lambda: range_finder_list(sides, ranks),
            "warm niter=1": lambda: range_finder_list(sides, ranks, niter=1, bases=bases),
        },
        baseline="torch.linalg.svd",
        error=error,
        limit=USABLE,
    )


def report(shares: dict[str, float]) -> None:
    for name, share in shares.items():
        target = TARGETS[name.partition(" ")[0]]
        print(f"{name}: {share:.3f} of the baseline's time, {'reaches' if share <= target else 'MISSES'} {target}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="for torch and for lowrank_core")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds per case")
    parser.add_argument("--isa", choices=_core.isa_levels(), help="instruction-set level of lowrank_core")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    if options.isa:
        _core.set_isa(options.isa)

    bench = Bench("bench_rsvd", rounds=options.rounds, threads=options.threads, pause=SPIN)
    a, optimum = matrix(SIZE, SIZE, seed=0)
    shares = {}
    for precision in ("medium", "highest"):
        shares[precision] = 1 / large(bench, a, optimum, precision)["lowrank_core"].speed_vs_baseline
    for precision in ("medium", "highest"):
        shares[f"warm {precision}"] = 1 / warm(bench, a, optimum, precision)["warm niter=1"].speed_vs_baseline
    rows = layer(bench)
    for start in ("cold niter=2", "warm niter=1"):
        shares[f"layer {start}"] = 1 / rows[start].speed_vs_baseline
    report(shares)
    bench.finish(isa=_core.isa(), shares=shares, targets=TARGETS)


if __name__ == "__main__":
    main()

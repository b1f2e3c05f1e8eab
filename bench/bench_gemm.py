"""Dense products against torch's, at the shapes that low-rank training needs.

Every product runs in three number formats: float32, bfloat16, and the float64 Gram matrix of float32 data. torch at
"medium" is true float32 through oneDNN, and counts as such, except on processors with AMX, where it rounds to bfloat16
and stands beside bfloat16 products. The baseline is torch's faster setting for the format. At "medium" lowrank_core
rounds float32 operands to bfloat16 only on processors that multiply those faster.

    python bench/bench_gemm.py [--threads 2] [--rounds 25] [--isa avx512]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from _harness import Bench, Row
from lowrank_core import _core

# m, n, k and whether A is the transpose of a row-major array.
SHAPES = [
    (4096, 128, 4096, False),
    (4096, 128, 4096, True),
    (4096, 138, 4096, False),
    (4096, 138, 4096, True),
    (128, 4096, 4096, False),
    (2048, 128, 768, False),
    (2048, 768, 128, False),
    (768, 2048, 128, False),
    (768, 138, 768, False),
    (138, 138, 138, False),
]
GRAMS = [(4096, 138), (768, 138)]
TARGET = 0.8  # of torch's rate


def error_of(a: torch.Tensor, b: torch.Tensor, exactly: type = np.float64) -> Callable[[object], float]:
    """Largest |C - A B| / (|A| |B|), elementwise, with the exact product in the type `exactly`."""
    left, right = a.double().numpy().astype(exactly), b.double().numpy().astype(exactly)
    exact, size = left @ right, np.abs(left) @ np.abs(right)

    def error(answer: object) -> float:
        assert isinstance(answer, torch.Tensor)
        return float((np.abs(answer.double().numpy() - exact) / size).max())

    return error


def summation(k: int) -> float:
    """The a-priori bound of a float32 sum of k products."""
    return (k + 4) * 2.0**-24


def torch_product(c: torch.Tensor, a: torch.Tensor, b: torch.Tensor, precision: str) -> Callable[[], torch.Tensor]:
    def call() -> torch.Tensor:
        torch.set_float32_matmul_precision(precision)
        return torch.mm(a, b, out=c)

    return call


def our_product(c: torch.Tensor, a: torch.Tensor, b: torch.Tensor, precision: str) -> Callable[[], torch.Tensor]:
    def call() -> torch.Tensor:
        _core.gemm(c, a, b, precision=precision)
        return c

    return call


def float32_product(bench: Bench, name: str, a: torch.Tensor, b: torch.Tensor) -> Row:
    m, k, n = a.shape[0], a.shape[1], b.shape[1]
    c, error = torch.empty(m, n), error_of(a, b)
    medium = torch_product(c, a, b, "medium")
    rivals = {
        "torch highest": torch_product(c, a, b, "highest"),
        "lowrank_core highest": our_product(c, a, b, "highest"),
    }
    baseline = "torch highest"
    if error(medium()) <= summation(k):
        rivals[baseline := "torch medium"] = medium
    flops = 2.0 * m * n * k
    rows = bench.compare(f"float32 {name}", rivals, baseline=baseline, error=error, limit=summation(k), flops=flops)
    return rows["lowrank_core highest"]


def bfloat16_product(bench: Bench, name: str, a: torch.Tensor, b: torch.Tensor) -> Row:
    m, k, n = a.shape[0], a.shape[1], b.shape[1]
    a16, b16, c16 = a.bfloat16(), b.bfloat16(), torch.empty(m, n, dtype=torch.bfloat16)
    c = torch.empty(m, n)
    rivals = {
        "torch": torch_product(c16, a16, b16, "medium"),
        "torch, float32": torch_product(c, a, b, "medium"),
        "lowrank_core": our_product(c16, a16, b16, "medium"),
        "lowrank_core, A 16 bit": our_product(c, a16, b, "medium"),
        "lowrank_core, float32": our_product(c, a, b, "medium"),
    }
    # Against the float32 operands: each is rounded once, 2^-8 relative, and so is C.
    limit = 3 * 2.0**-8 + 3 * 2.0**-16 + summation(k)
    rows = bench.compare(
        f"bfloat16 {name}", rivals, baseline="torch", error=error_of(a, b), limit=limit, flops=2.0 * m * n * k
    )
    return rows["lowrank_core"]


def gram_product(bench: Bench, m: int, n: int) -> Row:
    y = torch.randn(m, n)
    y64, g = y.double(), torch.empty(n, n, dtype=torch.float64)
    rivals = {
        "torch, from float64": torch_product(g, y64.t(), y64, "highest"),
        "torch, cast first": lambda: torch.mm(y.double().t(), y.double(), out=g),
        "lowrank_core": our_product(g, y.t(), y, "highest"),
    }
    limit = (m + 4) * 2.0**-53
    rows = bench.compare(
        f"float64 {n}x{n}x{m}",
        rivals,
        baseline="torch, from float64",
        error=error_of(y.t(), y, np.longdouble),
        limit=limit,
        flops=2.0 * m * n * n,
    )
    return rows["lowrank_core"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="for torch and for lowrank_core")
    parser.add_argument("--rounds", type=int, default=25, help="timed rounds per shape")
    parser.add_argument("--isa", choices=_core.isa_levels(), help="instruction-set level of lowrank_core")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    if options.isa:
        _core.set_isa(options.isa)

    bench = Bench("gemm", rounds=options.rounds, threads=options.threads)
    ours: dict[str, list[Row]] = {"float32": [], "bfloat16": [], "float64": []}
    for m, n, k, transposed in SHAPES:
        a = torch.randn(k, m).t() if transposed else torch.randn(m, k)
        b = torch.randn(k, n)
        name = f"{m}x{n}x{k}{' At' if transposed else ''}"
        ours["float32"].append(float32_product(bench, name, a, b))
        ours["bfloat16"].append(bfloat16_product(bench, name, a, b))
    ours["float64"] = [gram_product(bench, m, n) for m, n in GRAMS]

    lowest = {kind: min(rows, key=lambda row: row.speed_vs_baseline) for kind, rows in ours.items()}
    for kind, row in lowest.items():
        verdict = "reaches" if row.speed_vs_baseline >= TARGET else "MISSES"
        print(f"{kind}: {row.speed_vs_baseline:.2f} of torch's rate or more, {verdict} {TARGET}; lowest at {row.case}")
    bench.finish(isa=_core.isa(), lowest={kind: row.speed_vs_baseline for kind, row in lowest.items()})


if __name__ == "__main__":
    main()

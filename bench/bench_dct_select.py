"""Selection of DCT atoms against the product with the matrix, and against scipy's transform; the transforms alone.

The error of a selection is what it keeps less than the best set does, and how far its coordinates are from exact ones,
the larger of the two, relative to the whole. The product runs in float32 at precision "highest". 4 bytes read per
element and pass are the least that a selection can move: two passes, for the choice and for the coordinates.

    python bench/bench_dct_select.py [--threads 2] [--rounds 15] [--isa avx512]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import lowrank_core
import numpy as np
import scipy.fft
import torch
from _harness import Bench, Row
from lowrank_core import _core
from lowrank_core.reference import dct_select as reference
from torch import Tensor

RANK = 128
SIZES = (1024, 4096)
OTHERS = ((2048, 768), (768, 2048), (1100, 1021))  # a layer's matrices, and an awkward length
USABLE = 1e-5  # float32, and near ties that two of them may settle in their own way

# Largest share of the time of torch's product, norms and topk.
TARGETS = {1024: 0.12, 4096: 0.05}


def torch_product(g: Tensor, q: Tensor, side: str) -> Callable[[], object]:
    def run() -> object:
        s = q.T @ g if side == "left" else g @ q
        axis = 1 if side == "left" else 0
        indices = torch.linalg.vector_norm(s, dim=axis).topk(RANK).indices.sort().values
        return indices, s.index_select(1 - axis, indices)

    return run


def scipy_transform(g: np.ndarray, side: str, workers: int) -> Callable[[], object]:
    axis = 0 if side == "left" else 1

    def run() -> object:
        s = scipy.fft.dct(g, norm="ortho", axis=axis, workers=workers)
        energies = np.einsum("ij,ij->i" if side == "left" else "ij,ij->j", s, s)
        indices = np.sort(np.argpartition(energies, -RANK)[-RANK:])
        return indices, np.take(s, indices, axis=axis)

    return run


def distance(exact: Tensor, side: str) -> Callable[[object], float]:
    """Of (indices, coeffs, ...) from the best choice and from the exact coordinates, float64."""
    axis = 0 if side == "left" else 1
    energies = exact.square().sum(1 - axis)
    best, total = float(energies.topk(RANK).values.sum()), float(energies.sum())

    def error(answer: object) -> float:
        assert isinstance(answer, tuple)
        indices, coeffs = (torch.as_tensor(x) for x in answer[:2])
        lost = (best - float(energies[indices].sum())) / total
        apart = torch.linalg.vector_norm(exact.index_select(axis, indices) - coeffs)
        return max(lost, float(apart) / total**0.5)

    return error


def selection(bench: Bench, m: int, n: int, workers: int) -> dict[str, Row]:
    g = torch.randn(m, n, generator=torch.Generator().manual_seed(m + n))
    side = "right" if m >= n else "left"
    q = reference.dct_matrix(min(m, n)).T
    exact = q.T @ g.double() if side == "left" else g.double() @ q
    rivals = {
        "torch product": torch_product(g, q.float(), side),
        "scipy.fft.dct": scipy_transform(g.numpy(), side, workers),
        "lowrank_core": lambda: lowrank_core.dct_select(g, RANK),
        "lowrank_core 1-norm": lambda: lowrank_core.dct_select(g, RANK, norm_ord=1),
        "lowrank_core identity": lambda: lowrank_core.dct_select(g, RANK, basis="identity"),
    }
    limits = dict.fromkeys(rivals, USABLE)
    limits["lowrank_core 1-norm"] = limits["lowrank_core identity"] = float("inf")  # other atoms, on purpose
    return bench.compare(
        f"select {m} x {n} rank {RANK}",
        rivals,
        baseline="torch product",
        error=distance(exact, side),
        limit=limits,
        nbytes=2 * 4.0 * m * n,
    )


def transform(bench: Bench, m: int, n: int, workers: int) -> None:
    """Every row, read and written once."""
    x = torch.randn(m, n, generator=torch.Generator().manual_seed(n))
    exact = torch.from_numpy(scipy.fft.dct(x.double().numpy(), norm="ortho"))

    def error(answer: object) -> float:
        return float(torch.linalg.vector_norm(torch.as_tensor(answer) - exact) / torch.linalg.vector_norm(exact))

    rivals = {
        "scipy.fft.dct": lambda: scipy.fft.dct(x.numpy(), norm="ortho", workers=workers),
        "lowrank_core": lambda: lowrank_core.dct(x),
    }
    bench.compare(f"dct {m} x {n}", rivals, baseline="scipy.fft.dct", error=error, limit=USABLE, nbytes=2 * 4.0 * m * n)


def back(bench: Bench, n: int) -> None:
    """The product with the chosen atoms, which a transform of a scattered spectrum replaces."""
    g = torch.randn(n, n, generator=torch.Generator().manual_seed(n))
    chosen = lowrank_core.dct_select(g, RANK)
    atoms = reference.dct_matrix(n)[chosen.indices]
    exact = chosen.coeffs.double() @ atoms
    product = atoms.float()

    def error(answer: object) -> float:
        return float(torch.linalg.vector_norm(torch.as_tensor(answer) - exact) / torch.linalg.vector_norm(exact))

    rivals = {
        "torch product": lambda: chosen.coeffs @ product,
        "lowrank_core": lambda: lowrank_core.dct_project_back(chosen.coeffs, chosen.indices, n, side="right"),
    }
    bench.compare(f"back {n}² rank {RANK}", rivals, baseline="torch product", error=error, limit=USABLE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="for all rivals")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds per case")
    parser.add_argument("--isa", choices=_core.isa_levels(), help="instruction-set level of lowrank_core")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("highest")
    if options.isa:
        _core.set_isa(options.isa)

    bench = Bench("bench_dct_select", rounds=options.rounds, threads=options.threads)
    shares = {}
    for n in SIZES:
        shares[n] = 1 / selection(bench, n, n, options.threads)["lowrank_core"].speed_vs_baseline
    for m, n in OTHERS:
        selection(bench, m, n, options.threads)
    for n in SIZES:
        transform(bench, n, n, options.threads)
        back(bench, n)
    for n, share in shares.items():
        verdict = "reaches" if share <= TARGETS[n] else "MISSES"
        print(f"{n}²: {share:.3f} of the product's time, {verdict} {TARGETS[n]}")
    bench.finish(isa=_core.isa(), shares=shares, targets=TARGETS)


if __name__ == "__main__":
    main()

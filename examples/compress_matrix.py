"""Low-rank approximation of a NumPy array: at a fixed rank, and at the rank that a share of the energy needs."""

from __future__ import annotations

import lowrank_core as lc
import numpy as np


def main() -> None:
    # Singular values 1, 1/2, 1/3, ...: a matrix that low rank describes well but never exactly.
    m, n = 600, 400
    rng = np.random.default_rng(0)
    left = lc.orthonormalize(rng.standard_normal((m, n)))
    right = lc.orthonormalize(rng.standard_normal((n, n)))
    a = (left / np.arange(1, n + 1)) @ right.T

    print("rank  relative error  best possible")
    norm = np.linalg.norm(a)
    for rank in (5, 20, 80):
        u, s, vh = lc.rsvd(a, rank)
        best = np.sqrt(np.sum(1 / np.arange(rank + 1, n + 1) ** 2.0)) / norm
        print(f"{rank:4}  {np.linalg.norm(a - (u * s) @ vh) / norm:14.4f}  {best:13.4f}")

    print("energy    rank  numbers kept")
    for energy in (0.8, 0.9, 0.99):
        q, b, captured = lc.qb(a, energy=energy)
        print(f"{captured:.4%}  {q.shape[1]:4}  {(q.size + b.size) / a.size:12.1%}")


if __name__ == "__main__":
    main()

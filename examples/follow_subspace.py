"""A basis that follows a turning subspace: each search starts from the last basis instead of anew."""

from __future__ import annotations

import math

import lowrank_core as lc
import torch


def captured(a: torch.Tensor, basis: torch.Tensor) -> float:
    """Share of the squared norm of `a` [m, n] that lies in the span of `basis` [m, r]."""
    return float(lc.project(a, basis, side="left").square().sum() / a.square().sum())


def main() -> None:
    torch.manual_seed(0)
    m, n, rank = 384, 1024, 16
    start, target = lc.orthonormalize(torch.randn(m, 2 * rank)).chunk(2, dim=1)
    rows = torch.randn(rank, n)

    basis = first = lc.range_finder(start @ rows, rank)
    print("angle  first basis  warm start  new search")
    for degrees in range(15, 91, 15):
        angle = math.radians(degrees)
        turned = math.cos(angle) * start + math.sin(angle) * target
        a = turned @ rows + 0.05 * torch.randn(m, n)
        basis = lc.range_finder(a, rank, basis=basis, niter=1)
        new = lc.range_finder(a, rank)
        print(f"{degrees:5}  {captured(a, first):11.4f}  {captured(a, basis):10.4f}  {captured(a, new):10.4f}")


if __name__ == "__main__":
    main()

"""Shapes and matrices. Shapes are derived from the constants that kernels branch on, one below, at and one above."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

VECTOR = 16  # float32 lanes of the widest level; its half and quarter serve the others
TILE_ROWS, TILE_COLS = 14, 32  # of the widest micro-kernel
DEPTH = 256  # of a packed panel, and the rows of a sketch that one task draws
NONZEROS = 8  # entries in one row of a sketch
BLOCK = 128  # half a panel
STRIP = 496  # columns of a tile that is sketched at a time; DEPTH rows
JACOBI = 64  # width from which Jacobi runs in parallel
PRIME = 97


class Case(NamedTuple):
    """A matrix [m, n] to be factored to `rank`."""

    m: int
    n: int
    rank: int
    oversample: int = 10

    @property
    def width(self) -> int:
        return min(self.rank + self.oversample, self.m, self.n)


CASES = (
    *(Case(m, n, 0) for m, n in ((0, 0), (0, 5), (5, 0), (3, 4))),
    *(Case(m, n, 1) for m, n in ((1, 1), (1, VECTOR + 1), (VECTOR - 1, 1), (2, 2))),
    *(Case(VECTOR + d, 2 * VECTOR - d, 5, 2) for d in (-1, 0, 1)),
    *(Case(TILE_ROWS + d, TILE_COLS + d, 6, 3) for d in (-1, 0, 1)),
    *(Case(TILE_COLS + d, TILE_ROWS + d, TILE_ROWS + d) for d in (-1, 0, 1)),
    *(Case(BLOCK + d, PRIME, 7) for d in (-1, 0, 1)),
    *(Case(DEPTH + d, BLOCK, 20) for d in (-1, 0, 1)),
    *(Case(PRIME, DEPTH + d, 20) for d in (-1, 0, 1)),
    *(Case(DEPTH, 3 * PRIME, JACOBI // 2 - 10 + d) for d in (-1, 0, 1)),
    *(Case(PRIME, STRIP + d, 4, 4 + d) for d in (-1, 0, 1)),
    *(Case(BLOCK, BLOCK, 54 + d) for d in (-1, 0, 1)),  # twice the width against the matrix: 126, 128, 128
    Case(PRIME, PRIME, PRIME),
    Case(701, 523, 40),
)


def identify(case: Case) -> str:
    return "x".join(map(str, case))


def generator(*key: int) -> np.random.Generator:
    """A generator of its own for every case; the global ones stay untouched."""
    return np.random.default_rng(key)


def gaussian(m: int, n: int, *batch: int, seed: int = 0) -> Tensor:
    """[*batch, m, n], float64."""
    return torch.from_numpy(generator(seed, m, n).standard_normal((*batch, m, n)))


def orthonormal(m: int, n: int, seed: int = 0) -> Tensor:
    """[m, n] with orthonormal columns, uniformly distributed, float64."""
    return torch.linalg.qr(gaussian(m, n, seed=seed)).Q


def with_spectrum(m: int, n: int, values: Tensor, seed: int = 0) -> Tensor:
    """[m, n] of the given singular values between random orthonormal factors, float64."""
    k = values.numel()
    return orthonormal(m, k, seed) * values @ orthonormal(n, k, seed + 1).mT


def decaying(m: int, n: int, *, decades: float = 2.0, seed: int = 0) -> Tensor:
    """Singular values log-spaced over `decades` below 1."""
    return with_spectrum(m, n, torch.logspace(0, -decades, min(m, n), dtype=torch.float64), seed)


SPECTRA = {  # the six of the published bounds' calibration; j = 1, 2, ...
    "1/j": lambda j: 1 / j,
    "1/j²": lambda j: 1 / j**2,
    "exp(-j/5)": lambda j: torch.exp(-j / 5),
    "step": lambda j: torch.where(j <= 10, torch.ones_like(j), 1e-3),
    "1/√j": lambda j: j**-0.5,
    "flat": torch.ones_like,
}


def spectrum(name: str, count: int) -> Tensor:
    return SPECTRA[name](torch.arange(1, count + 1, dtype=torch.float64))

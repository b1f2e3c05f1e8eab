"""Orthogonal bases, the choice of atoms and Newton-Schulz as they are printed, in NumPy and float64."""

from __future__ import annotations

import numpy as np
from numpy import ndarray

COEFFICIENTS = (3.4445, -4.775, 2.0315)
STEEP = 4.0  # the largest slope of a x + b x^3 + c x^5 on [0, 1.2], where singular values stay


def atoms(basis: str, n: int) -> ndarray:
    """Q [n, n], whose columns are the atoms."""
    if basis == "identity":
        return np.eye(n)
    if basis == "hadamard":
        return np.array([[(-1.0) ** (i & j).bit_count() for j in range(n)] for i in range(n)]) / np.sqrt(n)
    k, i = np.arange(n)[:, None], np.arange(n)[None, :]
    rows = np.sqrt(2 / n) * np.cos(np.pi * k * (2 * i + 1) / (2 * n))
    rows[0] = np.sqrt(1 / n)
    return rows.T if basis == "dct2" else rows


def best(spectrum: ndarray, rank: int, norm_ord: int) -> list[int]:
    """The columns with the largest sums of |.|^p, ties to the lower one, ascending."""
    scores = (np.abs(spectrum) ** norm_ord).sum(axis=0)
    return sorted(sorted(range(len(scores)), key=lambda j: (-scores[j], j))[:rank])


def newton_schulz(matrix: ndarray, steps: int = 5, eps: float = 1e-7, coefficients: tuple = COEFFICIENTS) -> ndarray:
    """Every singular value through the polynomial, by a decomposition."""
    u, values, vh = np.linalg.svd(matrix, full_matrices=False)
    values = values / max(float(np.linalg.norm(matrix)), eps)
    a, b, c = coefficients
    for _ in range(steps):
        values = a * values + b * values**3 + c * values**5
    return u * values @ vh


def factor(adjust_lr_fn: str | None, m: int, n: int) -> float:
    """torch's factor on the rate."""
    return 0.2 * max(m, n) ** 0.5 if adjust_lr_fn == "match_rms_adamw" else max(1.0, m / n) ** 0.5

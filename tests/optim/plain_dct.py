"""DCT-AdamW in NumPy and float64, with feedback in the weight's space, and a bound of what rounding may do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy import ndarray
from plain_bases import best
from plain_steps import UNIT

RANK = 3
LR, BETAS, EPS, DECAY = 0.05, (0.8, 0.95), 1e-4, 0.02


@dataclass
class Plain:
    """One weight [m, n] whose basis is on the right. What was not chosen is kept in the weight's space; an atom's
    moments and its count are there only as long as it is chosen.

    Of several `bases` [n, n] it takes, at its first gradient that is not zero, the one whose atoms hold most of that.
    """

    weight: ndarray
    bases: dict[str, ndarray]
    gap: int
    norm_ord: int
    fed_back: bool
    left: Any = 0.0  # Xi
    count: int = 0
    basis: str = ""
    chosen: list[int] = field(default_factory=list)
    moments: dict[int, list[Any]] = field(default_factory=dict)  # of an atom: m, v, t
    captured: float = 0.0
    entered: int = 0
    off: float = 0.0
    error: float = 0.0

    def step(self, grad: ndarray) -> None:
        signal = grad + self.left
        if not self.basis and signal.any():
            self.basis = max(self.bases, key=lambda name: self._held(signal @ self.bases[name])[1])
        update = self._update(signal) if self.basis else 0.0
        self.count += 1
        self.weight = (1 - LR * DECAY) * self.weight - LR * update
        self.error += 8 * grad.shape[1] * UNIT * float(np.linalg.norm(self.weight))

    def _held(self, spectrum: ndarray) -> tuple[list[int], float]:
        """The atoms to choose, and their share of the squared norm."""
        chosen = best(spectrum, RANK, self.norm_ord)
        return chosen, float((spectrum[:, chosen] ** 2).sum() / (spectrum**2).sum())

    def _update(self, signal: ndarray) -> ndarray:
        basis = self.bases[self.basis]
        spectrum = signal @ basis
        if self.count % self.gap == 0 or not self.chosen:
            chosen, self.captured = self._held(spectrum)
            self.entered += len(set(chosen) - set(self.chosen)) if self.chosen else 0
            self.chosen = chosen
            self.moments = {j: self.moments.get(j, [0.0, 0.0, 0]) for j in chosen}
        self.off += 8 * len(basis) * UNIT * float(np.abs(signal).max())  # what is fed back keeps its rounding
        update = np.zeros_like(self.weight)
        for j in self.chosen:
            low, held = spectrum[:, j], self.moments[j]
            held[0] = BETAS[0] * held[0] + (1 - BETAS[0]) * low
            held[1] = BETAS[1] * held[1] + (1 - BETAS[1]) * low**2
            held[2] += 1
            root = np.sqrt(held[1] / (1 - BETAS[1] ** held[2])) + EPS
            direction = held[0] / (1 - BETAS[0] ** held[2]) / root
            update += np.outer(direction, basis[:, j])
            self.error += LR * float(np.linalg.norm(self.off / root * (1 + np.abs(direction))))
        if self.fed_back:
            inside = spectrum[:, self.chosen] @ basis[:, self.chosen].T
            self.left = signal - inside
        return update

"""Muon, Dion2 and Trion in NumPy and float64, with the momentum in the weight's space, and bounds of what rounding may
do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import ndarray
from plain_bases import STEEP, best, factor, newton_schulz
from plain_steps import UNIT


@dataclass
class Plain:
    """One weight whose atoms are on the right (`turned`: of the transposed weight). rank None: all of it."""

    weight: ndarray
    basis: ndarray
    rank: int | None
    lr: float
    momentum: float
    decay: float = 0.0
    norm_ord: int = 2
    nesterov: bool = False
    adjust_lr_fn: str | None = None
    turned: bool = False
    moving: Any = 0.0
    chosen: Any = None
    off: float = 0.0
    error: float = 0.0

    def step(self, grad: ndarray) -> None:
        m, n = grad.shape[::-1] if self.turned else grad.shape
        whole = self.moving + grad
        self.off += 8 * max(m, n) * UNIT * float(np.linalg.norm(whole))  # what stays keeps its rounding
        if self.rank is None:
            signal, self.moving = (grad + self.momentum * whole if self.nesterov else whole), self.momentum * whole
            update = newton_schulz(signal)
        else:
            spectrum = whole @ self.basis
            self.chosen = best(spectrum, self.rank, self.norm_ord)
            atoms, signal = self.basis[:, self.chosen], spectrum[:, self.chosen]
            self.moving = whole - (1 - self.momentum) * signal @ atoms.T
            update = newton_schulz(signal) @ atoms.T
        scaled = self.lr * factor(self.adjust_lr_fn, m, n)
        self.weight = (1 - self.lr * self.decay) * self.weight - scaled * update
        # Five steps of the iteration make an error of its start, and of each product, at most this much longer.
        relative = self.off / float(np.linalg.norm(signal)) + 8 * max(m, n) * UNIT
        self.error += scaled * STEEP**5 * relative * 2 + 4 * UNIT * float(np.linalg.norm(self.weight))

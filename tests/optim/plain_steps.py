"""Adam, channels and the limiter as they are printed, in NumPy, with first-order bounds of what rounding may do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch
from lowrank_core.optim.seeds import mix_seed
from lowrank_core.reference import philox
from numpy import ndarray
from optim_cases import composed

UNIT, UNIT32 = 2.0**-53, 2.0**-24
SIDES = {  # shape and proj_type -> the side that has the basis
    ((14, 9), "std"): "R",
    ((9, 14), "std"): "L",
    ((10, 10), "std"): "R",
    ((10, 10), "reverse_std"): "L",
    ((9, 14), "right"): "R",
    ((14, 9), "left"): "L",
}


@pytest.fixture(params=["kernel", "composed"])
def path(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test is run by the fused kernel, where there is one, and part by part."""
    with composed() if request.param == "composed" else nullcontext():
        yield


@dataclass
class Adam:
    """Two moments of the low-rank gradient, and the direction with torch's eps, outside the bias correction."""

    betas: tuple[float, float]
    eps: float
    mean: Any = 0.0
    square: Any = 0.0
    count: int = 0

    def direction(self, low: ndarray) -> ndarray:
        self.count += 1
        self.mean = self.betas[0] * self.mean + (1 - self.betas[0]) * low
        self.square = self.betas[1] * self.square + (1 - self.betas[1]) * low**2
        self.root = np.sqrt(self.square / (1 - self.betas[1] ** self.count)) + self.eps
        return self.mean / (1 - self.betas[0] ** self.count) / self.root

    def error(self, direction: ndarray, off: float) -> ndarray:
        """Of the direction, where every low-rank gradient is off by `off`: the quotient's derivative."""
        return off / self.root * (1 + np.abs(direction))

    @property
    def unbias(self) -> float:
        return float(np.sqrt(1 - self.betas[1] ** self.count) / (1 - self.betas[0] ** self.count))


@dataclass
class Limiter:
    """Holds |S| below `growth` times the one before, both without bias correction; the state has it in float32."""

    growth: float
    floor: float
    held: float = 0.0
    error: float = 0.0  # of `held`, relative

    def limited(self, rest: ndarray, error: float, unbias: float) -> tuple[ndarray, float]:
        """`rest`, whose norm is off by `error`, and the error of what is returned."""
        norm = float(np.linalg.norm(rest))
        allowed = self.growth * self.held * unbias
        if self.held == 0 or norm <= allowed:
            self.error = error / max(norm, 1e-300) + 4 * UNIT32
            kept = norm
        else:
            rest, error = rest * (allowed / norm), (2 * error / norm + self.error + 4 * UNIT32) * allowed
            self.error += 4 * UNIT32  # what was held, times `growth`, rounded at both ends
            kept = allowed
        self.held = kept / unbias if kept > self.floor else 0.0
        return rest, error


def gradients(shape: tuple[int, int], steps: int) -> list[ndarray]:
    """One for each step, with singular values that are clearly apart; they turn slowly, as in training."""
    draws, rank = np.random.default_rng(3), min(shape)
    left, right = draws.standard_normal((shape[0], rank)), draws.standard_normal((shape[1], rank))
    sizes, found = 0.6 ** np.arange(rank), []
    for _ in range(steps):
        left = left + 0.3 * draws.standard_normal(left.shape)
        right = right + 0.3 * draws.standard_normal(right.shape)
        found.append(np.linalg.qr(left)[0] * sizes @ np.linalg.qr(right)[0].T)
    return found


def leading(grad: ndarray, rank: int, held: ndarray | None) -> tuple[ndarray, float]:
    """The leading left singular vectors, pointing to where those `held` point, and how far rounding may turn one."""
    u, values, _ = np.linalg.svd(grad, full_matrices=False)
    apart = min(values[i] - values[i + 1] for i in range(min(rank, len(values) - 1)))
    basis = u[:, :rank]
    if held is not None:
        basis = basis * np.where((basis * held).sum(0) < 0, -1.0, 1.0)
    return basis, 20 * max(grad.shape) * UNIT * values[0] / apart  # Wedin, column by column


def normal(rows: int, cols: int, seed: int) -> ndarray:
    """Box's and Muller's numbers of Philox's words, by the row-major place."""
    element = np.arange(rows * cols, dtype=np.uint64)
    words = philox.blocks(seed, element >> np.uint64(1), stream=5)
    odd = element % 2 == 1
    first, second = np.where(odd, words[2], words[0]), np.where(odd, words[3], words[1])
    numbers = np.sqrt(-2 * np.log((first + 1.0) / 2.0**32)) * np.cos(2 * np.pi * (second / 2.0**32))
    return numbers.reshape(rows, cols)


def projection(rows: int, rank: int, seed: int, *position: int) -> ndarray:
    """P of a position: number of the weight, number of draws before."""
    return normal(rows, rank, mix_seed(seed, *position)) / sqrt(rank)


def of(optimizer: torch.optim.Optimizer, grads: list[torch.Tensor], lr: float = 1.0) -> list[torch.Tensor]:
    """The update of each step of the one weight of `optimizer`, which is put back to zero each time: -change / lr."""
    (weight,) = optimizer.param_groups[0]["params"]
    found = []
    for grad in grads:
        weight.detach().zero_()
        weight.grad = grad.to(weight.dtype)
        optimizer.step()
        found.append(weight.detach() / -lr)
    return found

"""Fifty steps against GaLore as it is printed, written here once more in NumPy: nothing of the package takes part."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from lowrank_core.optim import GaLoreAdamW
from numpy import ndarray

STEPS, GAP, RANK = 50, 7, 3
LR, BETAS, EPS, DECAY, SCALE = 0.05, (0.8, 0.95), 1e-4, 0.02, 0.4
UNIT = 2.0**-53
SIDES = {  # shape and proj_type -> the sides that have a basis
    ((14, 9), "std"): "R",
    ((9, 14), "std"): "L",
    ((10, 10), "std"): "R",
    ((10, 10), "reverse_std"): "L",
    ((9, 14), "right"): "R",
    ((14, 9), "left"): "L",
    ((14, 9), "full"): "LR",
}


@dataclass
class Plain:
    """One weight, its moments in the leading singular subspace, in float64."""

    weight: ndarray
    sides: str
    rotate: bool
    bases: dict[str, ndarray] = field(default_factory=dict)
    mean: Any = 0.0
    square: Any = 0.0
    count: int = 0
    error: float = 0.0  # what rounding may have moved the weight by, to first order; a bound of its norm

    def step(self, grad: ndarray) -> None:
        if self.count % GAP == 0:
            self.refresh(grad)
        self.count += 1
        low = grad
        low = self.bases["L"].T @ low if "L" in self.sides else low
        low = low @ self.bases["R"] if "R" in self.sides else low
        self.mean = BETAS[0] * self.mean + (1 - BETAS[0]) * low
        self.square = BETAS[1] * self.square + (1 - BETAS[1]) * low**2
        mean, root = self.mean / (1 - BETAS[0] ** self.count), np.sqrt(self.square / (1 - BETAS[1] ** self.count))
        update = mean / (root + EPS)
        self.account(grad, update, mean, root)
        update = self.bases["L"] @ update if "L" in self.sides else update
        update = update @ self.bases["R"].T if "R" in self.sides else update
        self.weight = self.weight - LR * DECAY * self.weight
        self.weight = self.weight - LR * SCALE * update

    def refresh(self, grad: ndarray) -> None:
        u, values, vt = np.linalg.svd(grad)
        found = {"L": u[:, :RANK], "R": vt[:RANK].T}
        held, self.bases = self.bases, {side: found[side] for side in self.sides}
        apart = min(values[i] - values[i + 1] for i in range(min(RANK, len(values) - 1)))
        self.turned = 20 * max(grad.shape) * UNIT * values[0] / apart  # Wedin, column by column
        if not held:
            return
        for side, new in self.bases.items():  # each vector points to where the one in its place pointed
            new *= np.where((new * held[side]).sum(0) < 0, -1.0, 1.0)
        if self.rotate:
            self.transport({side: new.T @ held[side] for side, new in self.bases.items()})

    def transport(self, turns: dict[str, ndarray]) -> None:
        """Means travel by the turn, variances by its squares."""

        def turn(x: ndarray, factors: dict[str, ndarray]) -> ndarray:
            x = factors["L"] @ x if "L" in factors else x
            return x @ factors["R"].T if "R" in factors else x

        one, two = 1 - BETAS[0] ** self.count, 1 - BETAS[1] ** self.count
        variance = self.square / two - (self.mean / one) ** 2
        self.mean = turn(self.mean, turns)
        squares = {side: factor**2 for side, factor in turns.items()}
        self.square = two * np.abs(turn(variance, squares) + (self.mean / one) ** 2)

    def account(self, grad: ndarray, update: ndarray, mean: ndarray, root: ndarray) -> None:
        """N = mean / (root + eps) of numbers that are off by `off`: the quotient's derivative; and P turns."""
        off = 4 * (self.turned + grad.size * UNIT) * np.abs(grad).max() * max(grad.shape) ** 0.5
        moved = off / (root + EPS) * (1 + np.abs(mean) / (root + EPS))
        self.error += LR * SCALE * float(np.linalg.norm(moved) + self.turned * np.linalg.norm(update))
        self.error += 4 * UNIT * float(np.linalg.norm(self.weight))


def gradients(shape: tuple[int, int], rank: int) -> list[ndarray]:
    """One for each step, of that rank, with values that are clearly apart; they turn slowly, as in training."""
    draws = np.random.default_rng(3)
    left, right = draws.standard_normal((shape[0], rank)), draws.standard_normal((shape[1], rank))
    sizes, found = 0.6 ** np.arange(rank), []
    for _ in range(STEPS):
        left = left + 0.3 * draws.standard_normal(left.shape)
        right = right + 0.3 * draws.standard_normal(right.shape)
        found.append(np.linalg.qr(left)[0] * sizes @ np.linalg.qr(right)[0].T)
    return found


@pytest.mark.parametrize("moments", ["keep", "rotate"])
@pytest.mark.parametrize(("shape", "proj_type"), SIDES)
@pytest.mark.parametrize(("projector", "rank"), [("svd", 9), ("rsvd", RANK)], ids=["svd", "rsvd"])
def test_fifty_steps(projector: str, rank: int, shape: tuple[int, int], proj_type: str, moments: str) -> None:
    """Also by the randomized search where the gradient has no more than the searched rank, hence no other subspace."""
    start = np.random.default_rng(1).standard_normal(shape)
    plain = Plain(start.copy(), SIDES[shape, proj_type], moments == "rotate")
    weight = torch.nn.Parameter(torch.from_numpy(start.copy()))
    keys: dict[str, Any] = {"rank": RANK, "update_proj_gap": GAP, "scale": SCALE, "moments": moments}
    optimizer = GaLoreAdamW([weight], LR, BETAS, EPS, DECAY, proj_type=proj_type, projector=projector, **keys)
    for number, grad in enumerate(gradients(shape, rank)):
        weight.grad = torch.from_numpy(grad)
        before = plain.weight
        plain.step(grad)
        optimizer.step()
        apart = np.linalg.norm(weight.detach().numpy() - plain.weight)
        assert apart <= plain.error, f"step {number}"
        # What is allowed is far below what any one step does.
        assert plain.error < 2.0**-20 * np.linalg.norm(plain.weight - before)

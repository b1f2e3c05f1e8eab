"""Flora: 50 steps against the formulas in NumPy, what a sketch gives back, and what it keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch
from lowrank_core.memory.geometry import Geometry, Side
from lowrank_core.optim import FloraAdamW, estimate_state_bytes
from lowrank_core.optim.parts import Parts
from lowrank_core.optim.parts.projectors.gaussian import Drawn
from lowrank_core.optim.parts.projectors.orthonormal import ExactSVD
from numpy import ndarray
from optim_cases import draw
from plain_steps import SIDES, gradients, of, projection
from torch import Tensor, nn

STEPS, KAPPA, RANK, SEED = 50, 7, 3, 11
LR, BETAS, EPS, DECAY = 0.05, (0.6, 0.9), 1e-4, 0.02
U32 = 2.0**-24


@dataclass
class Plain:
    """One weight [m, n] that is sketched on the left, the second one of its optimizer, in float64."""

    weight: ndarray
    row: Any = 0.0
    col: Any = 0.0
    sketch: Any = 0.0
    basis: Any = None
    count: int = 0
    path: float = 0.0  # how far the weight has been moved, added up

    def step(self, grad: ndarray) -> None:
        if self.count % KAPPA == 0:
            fresh = projection(len(grad), RANK, SEED, 1, self.count // KAPPA)
            if self.basis is not None:
                self.sketch = fresh.T @ (self.basis @ self.sketch)  # decoded, and encoded anew
            self.basis = fresh
        self.count += 1
        decay = min(1 - self.count**-0.8, BETAS[1])
        self.row = decay * self.row + (1 - decay) * (grad**2 + EPS**2).mean(1)
        self.col = decay * self.col + (1 - decay) * (grad**2 + EPS**2).mean(0)
        x = grad / np.sqrt(np.outer(self.row, self.col) / self.row.mean())
        y = (1 - BETAS[0]) * x + BETAS[0] * self.basis @ (self.sketch + np.zeros((RANK, grad.shape[1])))
        self.sketch = BETAS[0] * self.sketch + (1 - BETAS[0]) * self.basis.T @ x
        update = y / max(1.0, sqrt((y**2).mean()))
        self.weight = (1 - LR * DECAY) * self.weight - LR * update
        self.path += LR * float(np.linalg.norm(update))


@pytest.mark.parametrize(("shape", "proj_type"), SIDES)
def test_the_formulas(shape: tuple[int, int], proj_type: str) -> None:
    turn: Callable[[Any], Any] = (lambda x: x.T) if SIDES[shape, proj_type] == "R" else (lambda x: x)
    start = np.random.default_rng(1).standard_normal(shape)
    plain, weight = Plain(turn(start).copy()), nn.Parameter(torch.from_numpy(start.copy()))
    keys: dict[str, Any] = {"rank": RANK, "kappa": KAPPA, "seed": SEED, "proj_type": proj_type}
    optimizer = FloraAdamW([nn.Parameter(torch.zeros(4, 9)), weight], LR, BETAS, EPS, DECAY, **keys)
    for number, grad in enumerate(gradients(shape, STEPS)):
        weight.grad = torch.from_numpy(grad)
        plain.step(turn(grad))
        optimizer.step()
        # The means are float32: a step is off by a few roundings of these; a draw enlarges what a sketch is off by.
        off = 2**4 * U32 * plain.path
        assert np.linalg.norm(turn(weight.detach().numpy()) - plain.weight) <= off, f"step {number}"
        assert off < 2.0**-10 * plain.path


def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=dtype))


def test_g10_a_sketch_is_right_in_the_mean() -> None:
    """And its error is that of the theory: E |P P^T G - G|^2 = (m + 1) / r |G|^2."""
    m, rank, seeds = 12, 4, 400
    grad, where = draw(m, 20).double(), Geometry(m, 20, Side.LEFT, rank)
    total, squares = torch.zeros(m, 20).double(), 0.0
    for seed in range(seeds):
        subspace = Drawn(where, seed, torch.float64, torch.device("cpu"))
        back = subspace.up(subspace.down(grad))
        total, squares = total + back, squares + float((back - grad).norm() ** 2)
    theory = (m + 1) / rank * float(grad.norm() ** 2)
    # The mean of the squares over seeds varies by a few per cent; that of the matrices by the theory over the seeds.
    assert abs(squares / seeds / theory - 1) < 4 * sqrt(2 * m / (rank * seeds))
    assert (total / seeds - grad).norm() <= 1.5 * sqrt(theory / seeds)


class Orthogonal(FloraAdamW):
    """With a basis of all directions, which forgets nothing."""

    @classmethod
    def parts(cls, group: dict[str, Any], weight: Tensor) -> Parts:
        return replace(super().parts(group, weight), projector=ExactSVD())


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_g11_all_directions_are_the_dense_momentum(shape: tuple[int, int]) -> None:
    weight = zeros(*shape)
    optimizer = Orthogonal([weight], lr=1.0, rank=6, kappa=2, betas=(0.7, 0.9), eps=0.0, force_projection=True)
    row = col = mean = 0.0
    for step, update in enumerate(of(optimizer, grads := [draw(*shape, seed=i).double() for i in range(7)]), start=1):
        grad, decay = grads[step - 1], min(1 - step**-0.8, 0.9)
        row = decay * row + (1 - decay) * grad.square().mean(1)
        col = decay * col + (1 - decay) * grad.square().mean(0)
        mean = 0.7 * mean + 0.3 * grad / (torch.outer(row, col) / row.mean()).sqrt()
        expected = mean / max(1.0, float(mean.square().mean().sqrt()))
        assert (update - expected).norm() <= 2**4 * U32 * expected.norm()


def test_a_step_is_at_most_the_rate_long() -> None:
    """In the root mean square, whatever the size of the gradient, and however noisy the momentum."""
    for size in (1e-20, 1.0, 1e15):
        grads = [size * draw(12, 20, seed=number).double() for number in range(9)]
        optimizer = FloraAdamW([zeros(12, 20)], lr=0.5, rank=2, kappa=1, eps=0.0)
        lengths = [float(update.square().mean().sqrt()) for update in of(optimizer, grads, lr=0.5)]
        assert max(lengths) <= 1 + 1e-12 and lengths[-1] > 0.05


def test_a_gradient_of_zeros() -> None:
    """First it changes nothing; later the momentum goes on, and shrinks."""
    weight = zeros(12, 20)
    optimizer = FloraAdamW([weight], lr=1.0, rank=4, betas=(0.5, 0.999))
    zero, some = torch.zeros(12, 20), draw(12, 20)
    updates = of(optimizer, [zero, zero, some, zero, zero])
    assert not updates[0].any() and not updates[1].any() and all(update.isfinite().all() for update in updates)
    assert (updates[4] - updates[3] / 2).norm() <= 2**4 * U32 * updates[3].norm() and updates[3].any()


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 4), (torch.bfloat16, 2), (torch.float64, 8)], ids=str)
def test_its_state_is_a_sketch_and_two_vectors(dtype: torch.dtype, width: int) -> None:
    for shape in ((40, 64), (64, 40)):
        optimizer = FloraAdamW([zeros(*shape, dtype=dtype)], rank=8)
        of(optimizer, [draw(*shape)])
        held = optimizer.state_bytes()
        assert held == width * 64 * 8 + 4 * (64 + 40) + 4  # and the count of steps
        assert held == estimate_state_bytes([shape], "flora", rank=8, dtype=dtype)


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("kappa", 0, "be an int >= 1, got 0"),
        ("kappa", 2.5, "be an int >= 1, got 2.5"),
        ("betas", (1.0, 0.9), r"be two numbers in \[0, 1\), got \(1.0, 0.9\)"),
        ("proj_type", "full", "be one of std, reverse_std, left, right, got 'full'"),
    ],
)
def test_refusals(key: str, value: Any, rule: str) -> None:
    for make in (
        lambda: FloraAdamW([zeros(6, 8)], rank=2, **{key: value}),
        lambda: FloraAdamW([{"params": [zeros(6, 8)], "rank": 2, key: value}]),
    ):
        with pytest.raises(ValueError, match=f"^FloraAdamW: `{key}` must {rule}$"):
            make()

"""APOLLO and APOLLO-Mini: 50 steps against the formulas in NumPy, the random projection, and what the update is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch
from lowrank_core.optim import ApolloAdamW
from numpy import ndarray
from optim_cases import draw
from plain_steps import SIDES, UNIT, Adam, Limiter, gradients, leading, of, path, projection
from testing import tolerance
from torch import Tensor, nn

__all__ = ["path"]  # a fixture
with_both_paths = pytest.mark.usefixtures("path")
STEPS, GAP, RANK, SEED = 50, 7, 3, 11
LR, BETAS, EPS, DECAY, SCALE, LIMITER = 0.05, (0.8, 0.95), 1e-4, 0.02, 6.0, 1.1


@dataclass
class Plain:
    """One weight [m, n] that is projected on the left, the second one of its optimizer, in float64."""

    weight: ndarray
    random: bool
    whole: bool
    cap: float | None
    adam: Adam
    limiter: Limiter
    basis: Any = None
    turned: float = 0.0
    bound: list[int] = field(default_factory=list)  # the steps that the limiter held down
    capped: int = 0
    error: float = 0.0

    def step(self, grad: ndarray) -> None:
        if self.adam.count % GAP == 0 and self.random:
            self.basis, self.turned = projection(len(grad), RANK, SEED, 1, self.adam.count // GAP), 8 * UNIT
        elif self.adam.count % GAP == 0:
            self.basis, turned = leading(grad, RANK, self.basis)
            self.turned = max(self.turned, turned)
        low = self.basis.T @ grad
        inside = self.adam.direction(low)
        axis = None if self.whole else 0
        sizes = np.linalg.norm(low, axis=axis) + 1e-8
        scales = np.linalg.norm(inside, axis=axis) / sizes
        if self.cap is not None:
            most = self.cap * np.sort(scales)[(len(scales) - 1) // 2]  # the lower of two in the middle
            self.capped += int((scales > most).sum())
            scales = np.minimum(scales, most)

        off = 4 * (self.turned + grad.size * UNIT) * np.abs(grad).max() * sqrt(max(grad.shape))
        moved = np.linalg.norm(self.adam.error(inside, off), axis=axis) / sizes + scales * sqrt(low.size) * off / sizes
        free, error = sqrt(SCALE) * scales * grad, sqrt(SCALE) * float(np.max(moved) * np.linalg.norm(grad))
        limited, apart = self.limiter.limited(free, error, self.adam.unbias)
        if np.linalg.norm(limited) < 0.999 * np.linalg.norm(free):
            self.bound.append(self.adam.count)
        self.weight = (1 - LR * DECAY) * self.weight - LR * limited
        self.error += LR * apart + 4 * UNIT * float(np.linalg.norm(self.weight))


MODES: dict[str, dict[str, Any]] = {
    "channel": {},
    "capped": {"scale_cap": 1.25},
    "tensor": {"scale_type": "tensor"},
}


@with_both_paths
@pytest.mark.parametrize("projector", ["random", "svd"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("shape", "proj_type"), SIDES)
def test_the_formulas(projector: str, mode: str, shape: tuple[int, int], proj_type: str) -> None:
    turn: Callable[[Any], Any] = (lambda x: x.T) if SIDES[shape, proj_type] == "R" else (lambda x: x)
    start = np.random.default_rng(1).standard_normal(shape)
    floor = sqrt(SCALE) * 4 * sqrt(UNIT) * sqrt(RANK * turn(start).shape[1])
    cap = MODES[mode].get("scale_cap")
    parts = Adam(BETAS, EPS), Limiter(LIMITER, floor)
    plain = Plain(turn(start).copy(), projector == "random", mode == "tensor", cap, *parts)
    weight = nn.Parameter(torch.from_numpy(start.copy()))
    keys: dict[str, Any] = {"rank": RANK, "update_proj_gap": GAP, "scale": SCALE, "limiter": LIMITER, "seed": SEED}
    keys |= {"proj_type": proj_type, "projector": projector, **MODES[mode]}
    optimizer = ApolloAdamW([nn.Parameter(torch.zeros(4, 9)), weight], LR, BETAS, EPS, DECAY, **keys)
    for number, grad in enumerate(gradients(shape, STEPS)):
        weight.grad = torch.from_numpy(grad)
        before = plain.weight
        plain.step(turn(grad))
        optimizer.step()
        apart = np.linalg.norm(turn(weight.detach().numpy()) - plain.weight)
        assert apart <= plain.error, f"step {number}"
        # The norm of the limiter is stored in float32; what is allowed is far below what any one step does.
        assert plain.error < STEPS * 2.0**-19 * np.linalg.norm(plain.weight - before)
    assert 1 <= len(plain.bound) < STEPS - 3 and (plain.capped > 0) == (cap is not None)


def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=dtype))


def channels(matrix: Tensor) -> Tensor:
    """The norms of its columns where it is wide, of its rows else: the projection is on the shorter side."""
    return matrix.norm(dim=0 if matrix.shape[0] < matrix.shape[1] else 1, keepdim=True)


def low_of(optimizer: ApolloAdamW, weight: Tensor) -> Tensor:
    """R of the last step, where betas are 0."""
    low: Tensor = optimizer.state[weight]["exp_avg"]
    return low


@with_both_paths
@pytest.mark.parametrize("scale_type", ["channel", "tensor"])
@pytest.mark.parametrize("size", [1.0, 1e-8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (12, 12)])
def test_g6_the_first_step(shape: tuple[int, int], dtype: torch.dtype, size: float, scale_type: str) -> None:
    """Without eps N is the sign of R: s = sqrt r / (|R_j| + 1e-8), or sqrt(r l) / (|R| + 1e-8) of the tensor."""
    grad, weight = (size * draw(*shape, seed=1)).to(dtype), zeros(*shape, dtype=dtype)
    keys: dict[str, Any] = {"rank": 5, "eps": 0.0, "betas": (0.0, 0.0), "scale": SCALE, "scale_type": scale_type}
    optimizer = ApolloAdamW([weight], lr=1.0, **keys)
    (update,) = of(optimizer, [grad])
    low = low_of(optimizer, weight).double()
    size_of_low = low.norm() if scale_type == "tensor" else channels(low)
    entries = low.numel() if scale_type == "tensor" else 5
    expected = sqrt(SCALE) * sqrt(entries) / (size_of_low + 1e-8) * grad.double()
    assert (update.double() - expected).norm() <= 8 * tolerance.UNIT[dtype] * expected.norm()


@with_both_paths
@pytest.mark.parametrize(
    "keys", [{}, {"projector": "svd"}, {"rank": 1, "scale_type": "tensor", "scale": 128}, MODES["capped"]]
)
@pytest.mark.parametrize("moment_dtype", ["float32", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_g8_the_update_is_the_gradient_at_other_lengths(
    shape: tuple[int, int], dtype: torch.dtype, moment_dtype: str, keys: dict[str, Any]
) -> None:
    grads = [draw(*shape, seed=number).to(dtype) for number in range(1, 8)]
    optimizer = ApolloAdamW([zeros(*shape, dtype=dtype)], lr=1.0, **{"rank": 4, "moment_dtype": moment_dtype, **keys})
    for grad, update in zip(grads, of(optimizer, grads), strict=True):
        factors = update.double() / grad.double()
        lengths = (
            factors.abs().amax() if "scale_type" in keys else factors.abs().amax(0 if shape[0] < shape[1] else 1, True)
        )
        # A factor, its product and one rounding to the weight; of a stored factor in float32.
        assert bool((factors >= 0).all()) and bool((lengths > 0).all())
        assert bool(((factors - lengths).abs() <= 4 * (tolerance.UNIT[dtype] + 2.0**-24) * lengths).all())


@with_both_paths
@pytest.mark.parametrize("scale", [16.0, 1e-18])
def test_scale_enters_as_its_square_root(scale: float) -> None:
    """Through the limiter too, which binds in these steps."""
    grads = [draw(12, 20, seed=1).double()] * 5
    one, other = (of(ApolloAdamW([zeros(12, 20)], lr=1.0, rank=4, scale=x), grads) for x in (1.0, scale))
    assert all((x - sqrt(scale) * y).norm() <= 2.0**-20 * x.norm() for x, y in zip(other, one, strict=True))
    assert of(ApolloAdamW([zeros(12, 20)], lr=1.0, rank=4, scale=0), grads)[-1].norm() == 0


@with_both_paths
def test_the_cap_is_that_of_the_channels_that_live() -> None:
    """Rows of an embedding whose token does not occur have the scale 0, and are most of them."""
    grad = torch.zeros(40, 12).double()
    grad[::8] = draw(5, 12, seed=1).double() * torch.tensor([[1.0], [1.0], [1.0], [1.0], [1e-3]])
    weight = zeros(40, 12)
    optimizer = ApolloAdamW([weight], lr=1.0, rank=4, scale_cap=2.0, betas=(0.0, 0.0), eps=1e-300)
    (update,) = of(optimizer, [grad])
    scales = 2 / (low_of(optimizer, weight)[::8].norm(dim=1) + 1e-8)
    expected = scales.clamp(max=2 * float(scales.sort().values[2]))
    assert (update[::8] - expected[:, None] * grad[::8]).norm() <= 100 * UNIT * update.norm()
    assert float(expected[4]) < 0.1 * float(scales[4])
    assert of(ApolloAdamW([zeros(40, 12)], rank=4, scale_cap=2.0, betas=(0.0, 0.0)), [grad, 0 * grad])[1].norm() == 0


@pytest.mark.parametrize(("shape", "long"), [((40, 64), 64), ((64, 40), 64)])
def test_its_state_is_two_moments_and_one_number(shape: tuple[int, int], long: int) -> None:
    for dtype, width in ((torch.float32, 4), (torch.float64, 8), (torch.bfloat16, 2)):
        for rank, keys in ((8, {}), (1, {"scale_type": "tensor", "scale": 128})):
            optimizer = ApolloAdamW([zeros(*shape, dtype=dtype)], rank=rank, **keys)
            of(optimizer, [draw(*shape)])
            assert optimizer.state_bytes() == width * 2 * long * rank + 4 + 4  # the norm, the count of steps


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("proj_type", "full", "be one of std, reverse_std, left, right, got 'full'"),
        ("limiter", 0.5, "be a number >= 1, or None, got 0.5"),
        ("scale", -1.0, "be a number >= 0, got -1.0"),
        ("scale_cap", 0.5, "be a number >= 1, or None, got 0.5"),
        ("scale_type", "row", "be one of channel, tensor, got 'row'"),
        ("projector", "rsvd", "be one of random, svd, got 'rsvd'"),
    ],
)
def test_refusals(key: str, value: Any, rule: str) -> None:
    for make in (
        lambda: ApolloAdamW([zeros(6, 8)], **{key: value}),
        lambda: ApolloAdamW([{"params": [zeros(6, 8)], key: value}]),
    ):
        with pytest.raises(ValueError, match=f"^ApolloAdamW: `{key}` must {rule}$"):
            make()

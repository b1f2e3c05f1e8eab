"""Fira: 50 steps against the formulas in NumPy, and the identities that tell its parts apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch
from lowrank_core import memory
from lowrank_core.optim import FiraAdamW, GaLoreAdamW, LowRankOptimizer
from numpy import ndarray
from optim_cases import draw
from plain_steps import SIDES, UNIT, Adam, Limiter, gradients, leading, of, path
from testing import tolerance
from torch import Tensor, nn

__all__ = ["path"]  # a fixture
with_both_paths = pytest.mark.usefixtures("path")
STEPS, GAP, RANK = 50, 7, 3
LR, BETAS, EPS, DECAY, SCALE, LIMITER = 0.05, (0.8, 0.95), 1e-4, 0.02, 0.4, 1.1


@dataclass
class Plain:
    """One weight [m, n] whose basis is on the left, in float64."""

    weight: ndarray
    kappa: float
    adam: Adam
    limiter: Limiter
    basis: Any = None
    turned: float = 0.0
    bound: list[int] = field(default_factory=list)  # the steps that the limiter held down
    error: float = 0.0

    def step(self, grad: ndarray) -> None:
        if self.adam.count % GAP == 0:
            self.basis, turned = leading(grad, RANK, self.basis)
            self.turned = max(self.turned, turned)
        low = self.basis.T @ grad
        inside = self.adam.direction(low)
        rest = grad - self.kappa * self.basis @ low
        sizes = np.linalg.norm(low, axis=0) + 1e-8
        channels = np.linalg.norm(inside, axis=0) / sizes

        off = 4 * (self.turned + grad.size * UNIT) * np.abs(grad).max() * sqrt(max(grad.shape))
        moved = self.adam.error(inside, off)
        channels_moved = np.linalg.norm(moved, axis=0) / sizes + channels * sqrt(RANK) * off / sizes
        rest_moved = np.linalg.norm(channels_moved * rest) + np.linalg.norm(channels) * 2 * off * sqrt(len(grad))
        limited, apart = self.limiter.limited(channels * rest, float(rest_moved), self.adam.unbias)
        if np.linalg.norm(limited) < 0.999 * np.linalg.norm(channels * rest):
            self.bound.append(self.adam.count)

        self.weight = (1 - LR * DECAY) * self.weight - LR * (SCALE * self.basis @ inside + limited)
        turn = float(np.linalg.norm(moved) + self.turned * np.linalg.norm(inside))
        self.error += LR * (SCALE * turn + apart) + 4 * UNIT * float(np.linalg.norm(self.weight))


@with_both_paths
@pytest.mark.parametrize("projector", ["svd", "rsvd"])
@pytest.mark.parametrize("residual", ["paper", "code"])
@pytest.mark.parametrize(("shape", "proj_type"), SIDES)
def test_the_formulas(projector: str, residual: str, shape: tuple[int, int], proj_type: str) -> None:
    """By the randomized search too, which is exact where it sketches the whole of the shorter side."""
    turn = (lambda x: x.T) if SIDES[shape, proj_type] == "R" else (lambda x: x)
    start = np.random.default_rng(1).standard_normal(shape)
    floor = 4 * sqrt(UNIT) * sqrt(RANK * turn(start).shape[1])
    kappa = {"paper": 1.0, "code": SCALE}[residual]
    plain = Plain(turn(start).copy(), kappa, Adam(BETAS, EPS), Limiter(LIMITER, floor))
    weight = nn.Parameter(torch.from_numpy(start.copy()))
    keys: dict[str, Any] = {
        "rank": RANK,
        "update_proj_gap": GAP,
        "scale": SCALE,
        "residual": residual,
        "limiter": LIMITER,
    }
    optimizer = FiraAdamW([weight], LR, BETAS, EPS, DECAY, proj_type=proj_type, projector=projector, **keys)
    for number, grad in enumerate(gradients(shape, STEPS)):
        weight.grad = torch.from_numpy(grad)
        before = plain.weight
        plain.step(turn(grad))
        optimizer.step()
        apart = np.linalg.norm(turn(weight.detach().numpy()) - plain.weight)
        assert apart <= plain.error, f"step {number}"
        # The norm of the limiter is stored in float32; what is allowed is far below what any one step does.
        assert plain.error < STEPS * 2.0**-19 * np.linalg.norm(plain.weight - before)
    assert 2 <= len(plain.bound) < STEPS - 3


def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(shape, dtype=dtype))]


def updates(optimizer: type[LowRankOptimizer], grads: list[Tensor], **keys: Any) -> list[Tensor]:
    """Of a weight of zeros: -change / lr of each step."""
    return of(optimizer(zeros(*grads[0].shape, dtype=grads[0].dtype), lr=1.0, projector="svd", **keys), grads)


def channels(matrix: Tensor) -> Tensor:
    """The norms of its columns where it is wide, of its rows else: the basis is on the shorter side."""
    return matrix.norm(dim=0 if matrix.shape[0] < matrix.shape[1] else 1, keepdim=True)


@with_both_paths
@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (12, 12)])
def test_g5_at_full_rank_nothing_is_left(shape: tuple[int, int]) -> None:
    """The paper's rest is then zero, and Fira is GaLore; the code's is (1 - scale) G, each channel scaled."""
    grads = [draw(*shape, seed=number).double() for number in range(1, 6)]
    keys: dict[str, Any] = {"rank": 12, "force_projection": True}
    unscaled = updates(GaLoreAdamW, grads, scale=1.0, **keys)
    paper = updates(FiraAdamW, grads, scale=SCALE, **keys)
    code = updates(FiraAdamW, grads, scale=SCALE, residual="code", limiter=None, **keys)
    for grad, inside, one, other in zip(grads, unscaled, paper, code, strict=True):
        rounding = 100 * max(shape) * UNIT * (channels(inside) / channels(grad)).max() * grad.norm()
        assert (one - SCALE * inside).norm() <= rounding
        rest = (1 - SCALE) * channels(inside) / (channels(grad) + 1e-8) * grad
        assert (other - SCALE * inside - rest).norm() <= rounding


@with_both_paths
@pytest.mark.parametrize("size", [1.0, 1e-8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (12, 12)])
def test_g6_the_first_step(shape: tuple[int, int], dtype: torch.dtype, size: float) -> None:
    """Without eps N is the sign of R, so that phi_j is sqrt r / (|R_j| + 1e-8); scale = 0 leaves S alone."""
    grad = (size * draw(*shape, seed=1)).to(dtype)
    (update,) = updates(FiraAdamW, [grad], scale=0.0, rank=5, eps=0.0)
    u, _, vh = torch.linalg.svd(grad.double(), full_matrices=False)
    held = u[:, :5] @ u[:, :5].mT @ grad.double() if shape[0] < shape[1] else grad.double() @ vh[:5].mT @ vh[:5]
    expected = sqrt(5) / (channels(held) + 1e-8) * (grad.double() - held)
    # The basis is off by a few units over the gap of the singular values, which is 0.1 of the first one here or more.
    assert (update.double() - expected).norm() <= 100 * max(shape) * tolerance.UNIT[dtype] * expected.norm()


@with_both_paths
def test_the_update_has_full_rank() -> None:
    grads = [draw(12, 20, seed=1).double()]
    ranks = [torch.linalg.matrix_rank(*updates(o, grads, scale=1.0, rank=4)) for o in (FiraAdamW, GaLoreAdamW)]
    assert ranks == [12, 4]


@with_both_paths
def test_the_papers_rest_is_outside_of_the_subspace_and_the_codes_is_not() -> None:
    for residual, inside in (("paper", 0.0), ("code", 1 - SCALE)):
        optimizer = FiraAdamW(zeros(12, 20), lr=1.0, rank=4, scale=SCALE, residual=residual, betas=(0.0, 0.0), eps=0.0)
        grad = draw(12, 20, seed=1).double()
        (update,) = of(optimizer, [grad])
        (state,) = optimizer.state.values()
        low = state["proj.basis"].mT @ grad
        # Without memory and eps N is the sign of R: what is inside besides scale N is (1 - scale) phi_j R_j.
        expected = SCALE * low.sign() + inside * 2 / (low.norm(dim=0) + 1e-8) * low
        assert (state["proj.basis"].mT @ update - expected).norm() <= 100 * 12 * UNIT * update.norm()


@pytest.mark.parametrize(("shape", "short", "long"), [((40, 64), 40, 64), ((64, 40), 40, 64)])
def test_its_state_is_galores_and_one_number(shape: tuple[int, int], short: int, long: int) -> None:
    held = {}
    for dtype, width in ((torch.float32, 4), (torch.float64, 8), (torch.bfloat16, 2)):
        for kind in (FiraAdamW, GaLoreAdamW):
            optimizer = kind(zeros(*shape, dtype=dtype), rank=8)
            of(optimizer, [draw(*shape)])
            held[kind] = optimizer.state_bytes()
        counters = 4 + 4  # the count of steps, the share captured
        assert held[GaLoreAdamW] == width * (short * 8 + 2 * long * 8) + counters
        assert held[FiraAdamW] == held[GaLoreAdamW] + 4


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("proj_type", "full", "be one of std, reverse_std, left, right, got 'full'"),
        ("limiter", 0.99, "be a number >= 1, or None, got 0.99"),
        ("limiter", float("nan"), "be a number >= 1, or None, got nan"),
        ("limiter", True, "be a number >= 1, or None, got True"),
        ("residual", "reference", "be one of paper, code, got 'reference'"),
        ("residual", None, "be one of paper, code, got None"),
        ("scale", float("inf"), "be a finite number, got inf"),
        ("projector", "random", "be one of rsvd, svd, got 'random'"),
        ("moments", "drop", "be one of keep, rotate, got 'drop'"),
    ],
)
def test_refusals(key: str, value: Any, rule: str) -> None:
    for make in (
        lambda: FiraAdamW(zeros(6, 8), **{key: value}),
        lambda: FiraAdamW([{"params": zeros(6, 8), key: value}]),
    ):
        with pytest.raises(ValueError, match=f"^FiraAdamW: `{key}` must {rule}$"):
            make()


def test_a_key_of_another_method_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"^FiraAdamW: `scale_type` must be one of its keys, got scale_type"):
        FiraAdamW(zeros(6, 8), scale_type="tensor")


def test_frozen_weights_of_any_dtype_are_nobodys_business() -> None:
    frozen = nn.Parameter(torch.zeros(6, 6, dtype=torch.uint8), requires_grad=False)
    optimizer = FiraAdamW([*zeros(6, 8), frozen], rank=2)
    assert optimizer.planned_state_bytes() > 0 and len(optimizer.plan()) == 2


@pytest.mark.parametrize("method", ["fira", "apollo"])
def test_their_estimate_refuses_two_bases_too(method: str) -> None:
    with pytest.raises(
        ValueError, match=r"^estimate_state_bytes: `proj_type` must be one of std, reverse_std, left, right"
    ):
        memory.estimate_state_bytes([(40, 64)], method, rank=8, proj_type="full")

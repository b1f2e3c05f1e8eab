"""LDAdam: 50 steps against the formulas in NumPy, what is fed back, and what it keeps."""

from __future__ import annotations

from contextlib import nullcontext
from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch
from lowrank_core.optim import LDAdamW, estimate_state_bytes
from numpy import ndarray
from optim_cases import composed, draw, same
from plain_steps import SIDES, UNIT, UNIT32, gradients, leading, path
from torch import nn

__all__ = ["path"]  # a fixture
with_both_paths = pytest.mark.usefixtures("path")
STEPS, RANK = 50, 3
LR, BETAS, EPS, DECAY, RHO = 0.05, (0.8, 0.95), 1e-4, 0.02, 0.7


class Plain:
    """One weight [m, n] whose basis is on the left, in float64 and as it is printed: E with the moments before."""

    def __init__(self, weight: ndarray) -> None:
        self.weight, self.error, self.count = weight, np.zeros_like(weight), 0
        self.basis: Any = None
        self.mean: Any = 0.0
        self.square: Any = 0.0

    def step(self, grad: ndarray) -> None:
        total, (b1, b2), t = grad + self.error, BETAS, self.count
        feedback = np.zeros_like(total)
        if self.basis is None:
            self.basis = leading(total, RANK, None)[0]
            self.mean = self.square = np.zeros((RANK, grad.shape[1]))
        else:
            old = self.basis
            followed = RHO * old @ self.mean / (1 - b1**t) + (1 - RHO) * total
            new = np.linalg.qr(followed @ (followed.T @ old))[0]
            turn = new.T @ old
            mean = turn @ self.mean
            spread = self.square / (1 - b2**t) - (self.mean / (1 - b1**t)) ** 2
            self.square = (1 - b2**t) * np.abs(turn**2 @ spread + (mean / (1 - b1**t)) ** 2)
            feedback = b1 / (1 - b1) * (old @ self.mean - new @ mean)
            self.basis, self.mean = new, mean
        low = self.basis.T @ total
        self.error = total - self.basis @ low + feedback
        self.mean = b1 * self.mean + (1 - b1) * low
        self.square = b2 * self.square + (1 - b2) * low**2
        self.count += 1
        root = np.sqrt(self.square / (1 - b2**self.count)) + EPS
        self.weight = (1 - LR * DECAY) * self.weight - LR * self.basis @ (self.mean / (1 - b1**self.count) / root)


@with_both_paths
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(("shape", "proj_type"), SIDES)
def test_the_formulas(shape: tuple[int, int], proj_type: str, maximize: bool) -> None:
    """Errors of rounding are carried from step to step; they stay far below what any one step does."""
    turn = (lambda x: x.T) if SIDES[shape, proj_type] == "R" else (lambda x: x)
    start = np.random.default_rng(1).standard_normal(shape)
    plain, weight = Plain(turn(start).copy()), nn.Parameter(torch.from_numpy(start.copy()))
    keys: dict[str, Any] = {"rank": RANK, "proj_type": proj_type, "rho": RHO, "maximize": maximize}
    optimizer = LDAdamW([weight], LR, BETAS, EPS, DECAY, **keys)
    for number, grad in enumerate(gradients(shape, STEPS)):
        weight.grad, before = torch.from_numpy(grad), plain.weight
        plain.step(turn(-grad if maximize else grad))
        optimizer.step()
        moved = np.linalg.norm(plain.weight - before)
        assert np.linalg.norm(turn(weight.detach().numpy()) - plain.weight) <= 2.0**-20 * moved, f"step {number}"
        error = turn(optimizer.state[weight]["residual.error"].numpy())
        assert np.linalg.norm(error - plain.error) <= 2.0**-20 * np.linalg.norm(plain.error)
    basis = optimizer.state[weight]["proj.basis"].numpy()
    apart = np.linalg.norm(basis @ (basis.T @ plain.basis) - plain.basis)
    assert apart <= 2.0**-20 and np.abs(basis.T @ basis - np.eye(RANK)).max() <= 100 * UNIT
    assert same(weight.grad, torch.from_numpy(grad))  # E is not kept there


@with_both_paths
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(24, 16), (16, 24)])
def test_nothing_is_lost(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """The first moments that were stepped and what is missing yet are all of the gradients together: summed up,
    (P M - b1 P_old M_old) / (1 - b1) is what of A entered, whatever the subspaces were."""
    weight, entered, total = nn.Parameter(draw(*shape).to(dtype)), torch.zeros(shape), torch.zeros(shape)
    optimizer = LDAdamW([weight], 0.0, rank=4, moment_dtype="float32")
    lifted, size, beta1 = torch.zeros(shape), 0.0, 0.908
    for step in range(12):
        weight.grad = draw(*shape, seed=step).to(dtype)
        optimizer.step()
        state, before = optimizer.state[weight], lifted
        basis, moment = state["proj.basis"].float(), state["exp_avg"]
        lifted = moment @ basis.mT if shape[0] > shape[1] else basis @ moment
        entered += (lifted - beta1 * before) / (1 - beta1)
        total += weight.grad.float()
        size += float(lifted.norm()) * 2 / (1 - beta1) + float(state["residual.error"].float().norm())
    unit = UNIT32 if dtype == torch.float32 else 2.0**-8  # of the basis and of E, as they are stored
    assert (total - entered - state["residual.error"].float()).norm() <= (40 * UNIT32 + 2 * unit) * size


def after(optimizer: type[Any], steps: int, *, size: float = 1.0, **keys: Any) -> tuple[nn.Parameter, Any]:
    weight = nn.Parameter(draw(40, 24))
    made = optimizer([weight], 0.01, **{"rank": 4, **keys})
    for step in range(steps):
        weight.grad = size * draw(40, 24, seed=step)
        made.step()
    return weight, made


@with_both_paths
def test_gradients_of_any_size() -> None:
    """Powers of two are exact: the subspaces are those of gradients of size 1, and without eps so are the steps."""
    usual, _ = after(LDAdamW, 6, eps=0.0)
    for power in (-40, -20, 20, 40):
        weight, optimizer = after(LDAdamW, 6, size=2.0**power, eps=0.0)
        moved = (weight - draw(40, 24)).norm()
        assert (weight - usual).norm() <= 2.0**-10 * moved
        basis = optimizer.state[weight]["proj.basis"]
        assert (basis.mT @ basis - torch.eye(4)).abs().max() <= 2 * 40 * UNIT32


@with_both_paths
def test_the_subspace_is_that_of_gradients_whose_squares_are_no_numbers() -> None:
    weight, usual = after(LDAdamW, 6)
    for power in (-75, 60):
        small, optimizer = after(LDAdamW, 6, size=2.0**power)
        apart = optimizer.state[small]["proj.basis"] - usual.state[weight]["proj.basis"]
        assert apart.abs().max() <= 2 * 40 * UNIT32 * 6


def test_draws_are_those_of_the_composition() -> None:
    """Other draws would send half of the weights the other way; rounding sends those on an edge."""
    ends = []
    for way in (nullcontext, composed):
        weight = nn.Parameter(draw(40, 24).bfloat16())
        optimizer = LDAdamW([weight], 0.001, rank=4, rounding="stochastic")
        for step in range(3):
            weight.grad = draw(40, 24, seed=step).bfloat16()
            with way():
                optimizer.step()
        ends.append(weight.detach())
    assert (ends[0] == ends[1]).double().mean() > 0.95


@with_both_paths
def test_gradients_of_zeros_and_of_rank_one() -> None:
    weight = nn.Parameter(draw(40, 24))
    start, optimizer = weight.detach().clone(), LDAdamW([weight], 0.01, rank=4)
    for _ in range(3):
        weight.grad = torch.zeros(40, 24)
        optimizer.step()
    assert torch.equal(weight, start) and not optimizer.state[weight]["residual.error"].any()
    for step in range(4):
        weight.grad = torch.outer(draw(40, seed=step), draw(24, seed=step + 9))
        optimizer.step()
    assert bool(torch.isfinite(weight).all()) and not torch.equal(weight, start)


def test_rho_at_its_ends() -> None:
    """At 1 the first subspace is kept, for M lies in it; at 0 it follows the gradients alone."""
    for rho, stays in ((1.0, True), (0.0, False)):
        first, one = after(LDAdamW, 1, rho=rho)
        later, other = after(LDAdamW, 5, rho=rho)
        start, end = one.state[first]["proj.basis"], other.state[later]["proj.basis"]
        apart = (end - start @ (start.mT @ end)).norm()
        assert (apart <= 5 * 2 * 40 * UNIT32) == stays


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_what_it_keeps(dtype: torch.dtype) -> None:
    weight = nn.Parameter(draw(64, 40).to(dtype))
    optimizer = LDAdamW([weight])
    weight.grad = draw(64, 40, seed=1).to(dtype)
    optimizer.step()
    state, wide = optimizer.state[weight], {torch.float64: torch.float64, torch.bfloat16: torch.bfloat16}
    kept = wide.get(dtype, torch.float32)
    assert state["residual.error"].dtype == state["proj.basis"].dtype == kept
    assert state["proj.basis"].shape == (40, 16) and "proj.captured" not in state
    held = kept.itemsize * (40 * 16 + 2 * 64 * 16 + 64 * 40) + 4  # and the count of steps
    assert held == optimizer.state_bytes() == estimate_state_bytes([(64, 40)], "ldadam", rank=None, dtype=dtype)


def test_the_kernels_take_no_copy_that_the_composition_would_not() -> None:
    """To the bit or not: both ways end close by, also with decay, draws and coded moments."""
    for keys in ({}, {"weight_decay": 0.1}, {"moment_dtype": "int8"}, {"betas": (0.0, 0.99)}):
        ours, _ = after(LDAdamW, 1, **keys)
        with composed():
            theirs, _ = after(LDAdamW, 1, **keys)
        moved = (ours - draw(40, 24)).norm()
        assert (ours - theirs).norm() <= 40 * sqrt(40) * UNIT32 * (moved + ours.norm())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rho": 1.5}, r"LDAdamW: `rho` must be a number in \[0, 1\], got 1.5"),
        ({"rho": "x"}, r"LDAdamW: `rho` must be a number in \[0, 1\], got 'x'"),
        ({"betas": 0.9}, r"LDAdamW: `betas` must be two numbers in \[0, 1\), got 0.9"),
        ({"proj_type": "full"}, "LDAdamW: `proj_type` must be one of std, reverse_std, left, right, got 'full'"),
    ],
)
def test_refusals(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LDAdamW([nn.Parameter(draw(8, 9))], rank=2, **keys)
    for key in ("scale", "update_proj_gap", "projector"):
        with pytest.raises(TypeError, match=f"`{key}` must be one of its keys"):
            LDAdamW([nn.Parameter(draw(8, 9))], rank=2, **{key: 1})

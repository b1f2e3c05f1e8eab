"""GaLore's other rules: 50 steps against the formulas in NumPy, what they keep, and how it travels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch
from lowrank_core.memory import estimate_state_bytes
from lowrank_core.optim import GaLoreAdamW
from lowrank_core.optim.parts.rules.adabelief import AdaBelief
from lowrank_core.optim.parts.rules.adafactor import Adafactor, outer
from lowrank_core.optim.parts.rules.lion import Lion
from numpy import ndarray
from optim_cases import draw, same
from plain_steps import SIDES, UNIT, gradients, leading, of, path
from torch import Tensor, nn

__all__ = ["path"]  # a fixture
with_both_paths = pytest.mark.usefixtures("path")
STEPS, GAP, RANK = 50, 7, 3
LR, BETAS, EPS, DECAY, SCALE = 0.05, (0.8, 0.95), 1e-4, 0.02, 0.4


@dataclass
class PlainLion:
    """Chen et al. 2023, algorithm 2."""

    mean: Any = 0.0
    closest: float = np.inf  # what the sign was taken of, at its smallest

    def direction(self, low: ndarray, step: int) -> ndarray:
        ahead = BETAS[0] * self.mean + (1 - BETAS[0]) * low
        self.mean = BETAS[1] * self.mean + (1 - BETAS[1]) * low
        self.closest = np.abs(ahead).min()
        return np.sign(ahead)

    def error(self, direction: ndarray, off: float) -> ndarray:
        assert self.closest > 2 * off, "the sign of a number of rounding size says nothing"
        return np.zeros_like(direction)


@dataclass
class PlainAdaBelief:
    """Zhuang et al. 2020, algorithm 2."""

    mean: Any = 0.0
    variance: Any = 0.0

    def direction(self, low: ndarray, step: int) -> ndarray:
        self.mean = BETAS[0] * self.mean + (1 - BETAS[0]) * low
        self.variance = BETAS[1] * self.variance + (1 - BETAS[1]) * (low - self.mean) ** 2 + EPS
        self.root = np.sqrt(self.variance / (1 - BETAS[1] ** step)) + EPS
        return self.mean / (1 - BETAS[0] ** step) / self.root

    def error(self, direction: ndarray, off: float) -> ndarray:
        return off / self.root * (1 + 2 * np.abs(direction))


@dataclass
class PlainAdafactor:
    """Shazeer, Stern 2018, algorithm 4, with the decay of section 7.2 held below beta2."""

    row: Any = 0.0
    col: Any = 0.0

    def direction(self, low: ndarray, step: int) -> ndarray:
        decay = min(1 - step**-0.8, BETAS[1])
        self.row = decay * self.row + (1 - decay) * (low**2 + EPS**2).mean(axis=1)
        self.col = decay * self.col + (1 - decay) * (low**2 + EPS**2).mean(axis=0)
        self.root = np.sqrt(np.outer(self.row, self.col) / self.row.mean())
        unclipped = low / self.root
        return unclipped / max(1.0, sqrt(np.mean(unclipped**2)))

    def error(self, direction: ndarray, off: float) -> ndarray:
        # Means of squares are off by twice `off` times their roots; the clip by what the direction is.
        share = off * sum(1 / np.sqrt(mean).min() for mean in (self.row, self.col, self.row.mean()))
        return off / self.root + 2 * np.abs(direction) * share


PLAIN: dict[str, Callable[[], Any]] = {"lion": PlainLion, "adabelief": PlainAdaBelief, "adafactor": PlainAdafactor}
every_rule = pytest.mark.parametrize("rule", PLAIN)


@with_both_paths
@every_rule
@pytest.mark.parametrize("projector", ["svd", "rsvd"])
@pytest.mark.parametrize(("shape", "proj_type"), SIDES)
def test_the_formulas(rule: str, projector: str, shape: tuple[int, int], proj_type: str) -> None:
    """Adafactor's factors change places with the sides: its rows are those of R as it is kept."""
    right = SIDES[shape, proj_type] == "R"
    turn = (lambda x: x.T) if right else (lambda x: x)
    start = np.random.default_rng(1).standard_normal(shape)
    plain, expected, basis, turned, error = PLAIN[rule](), turn(start).copy(), None, 0.0, 0.0
    weight = nn.Parameter(torch.from_numpy(start.copy()))
    keys: dict[str, Any] = {"rank": RANK, "update_proj_gap": GAP, "scale": SCALE, "proj_type": proj_type}
    optimizer = GaLoreAdamW([weight], LR, BETAS, EPS, DECAY, rule=rule, projector=projector, **keys)
    for number, grad in enumerate(gradients(shape, STEPS)):
        weight.grad = torch.from_numpy(grad)
        optimizer.step()
        if number % GAP == 0:
            basis, turn_of_one = leading(turn(grad), RANK, basis)
            turned = max(turned, turn_of_one)
        low, before = basis.T @ turn(grad), expected
        direction = turn(plain.direction(turn(low), number + 1))
        off = 4 * (turned + grad.size * UNIT) * np.abs(grad).max() * sqrt(max(shape))
        moved = float(np.linalg.norm(plain.error(turn(direction), off)) + turned * np.linalg.norm(direction))
        expected = (1 - LR * DECAY) * expected - LR * SCALE * basis @ direction
        error += LR * SCALE * moved + 4 * UNIT * float(np.linalg.norm(expected))
        assert np.linalg.norm(turn(weight.detach().numpy()) - expected) <= error, f"step {number}"
        assert error < 2.0**-14 * np.linalg.norm(expected - before)


def held(rule: str, **keys: Any) -> dict[str, Any]:
    weight = nn.Parameter(draw(12, 20))
    optimizer = GaLoreAdamW([weight], rank=3, rule=rule, **keys)
    weight.grad = draw(12, 20, seed=1)
    optimizer.step()
    assert optimizer.state_bytes() == estimate_state_bytes([(12, 20)], rank=3, rule=rule, **keys)
    return optimizer.state[weight]


@pytest.mark.parametrize(
    ("rule", "shapes"),
    [
        ("adam", {"exp_avg": (3, 20), "exp_avg_sq": (3, 20)}),
        ("lion", {"exp_avg": (3, 20)}),
        ("adabelief", {"exp_avg": (3, 20), "exp_avg_var": (3, 20)}),
        ("adafactor", {"exp_avg_sq_row": (3,), "exp_avg_sq_col": (20,)}),
    ],
)
def test_what_a_rule_keeps(rule: str, shapes: dict[str, tuple[int, ...]]) -> None:
    found = {key: tuple(value.shape) for key, value in held(rule).items() if key.startswith("exp_avg")}
    assert found == shapes
    assert held(rule, moment_dtype="int8").keys() >= {f"{key}.codes" for key in shapes}


def test_adam_is_the_default() -> None:
    assert (
        same(held("adam"), {**held("adam")})
        and GaLoreAdamW([nn.Parameter(draw(6, 8))], rank=2).defaults["rule"] == "adam"
    )


@every_rule
@with_both_paths
def test_a_gradient_of_zeros_does_nothing(rule: str) -> None:
    """Before a subspace is known and after; and rows that have never seen a gradient stay where they are."""
    weight = nn.Parameter(draw(12, 20))
    start, optimizer = weight.detach().clone(), GaLoreAdamW([weight], rank=3, rule=rule, update_proj_gap=2)
    for _ in range(3):
        weight.grad = torch.zeros(12, 20)
        optimizer.step()
    assert torch.equal(weight, start) and optimizer.projections()[0].refreshes == 0
    for step in range(4):
        weight.grad = draw(12, 20, seed=step)
        weight.grad[:, 5:] = 0
        optimizer.step()
    assert torch.equal(weight[:, 5:], start[:, 5:]) and not torch.equal(weight[:, :5], start[:, :5])
    assert bool(torch.isfinite(weight).all())


def test_adafactor_without_eps_leaves_what_has_no_gradient() -> None:
    """There the root of the second moment is 0, too."""
    weight = nn.Parameter(draw(12, 20))
    start, optimizer = weight.detach().clone(), GaLoreAdamW([weight], rank=3, rule="adafactor", eps=0.0)
    weight.grad = draw(12, 20, seed=1)
    weight.grad[:, 5:] = 0
    optimizer.step()
    assert torch.equal(weight[:, 5:], start[:, 5:]) and bool(torch.isfinite(weight).all())


@every_rule
@with_both_paths
@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e30])
def test_gradients_of_any_size(rule: str, size: float) -> None:
    weight, squares = nn.Parameter(draw(12, 20)), 1e-15 < size < 1e15  # whether they are numbers of float32
    keys: dict[str, Any] = {"rank": 3, "scale": 1.0, "rule": rule, "eps": 0.0 if squares else 1e-8}
    start, optimizer = weight.detach().clone(), GaLoreAdamW([weight], 0.1, **keys)
    for step in range(3):
        weight.grad = size * draw(12, 20, seed=step)
        optimizer.step()
    assert bool(torch.isfinite(weight).all())
    if squares:
        assert 0.05 < (weight - start).norm() / sqrt(3 * 20) < 1.0


class Turned:
    """T of a basis on the left."""

    def __init__(self, change: Tensor) -> None:
        self.change = change

    def linear(self, low: Tensor) -> Tensor:
        return self.change @ low

    def squared(self, low: Tensor) -> Tensor:
        return self.change.square() @ low


def test_how_moments_travel() -> None:
    """Means by T, variances by its squares, none of which is negative; by T = 1 nothing changes."""
    mean, spread = draw(4, 9).double(), draw(4, 9, seed=1).double().square()
    turn = Turned(torch.linalg.qr(draw(6, 6, seed=2).double())[0][:3, :4])
    for moved in (Lion().turned({"exp_avg": mean}, turn, 5), AdaBelief().turned(pair(mean, spread), turn, 5)):
        assert torch.equal(moved["exp_avg"], turn.change @ mean)
    assert torch.equal(moved["exp_avg_var"], turn.change.square() @ spread)
    row, col = spread.mean(dim=1), spread.mean(dim=0)
    factors = Adafactor().turned({"exp_avg_sq_row": row, "exp_avg_sq_col": col}, turn, 5)
    whole = turn.change.square() @ (row[:, None] * col[None] / row.mean())
    assert (outer(factors["exp_avg_sq_row"], factors["exp_avg_sq_col"]) - whole).norm() <= 40 * UNIT * whole.norm()
    still = Turned(torch.eye(4, dtype=torch.float64))
    kept = Adafactor().turned({"exp_avg_sq_row": row, "exp_avg_sq_col": col}, still, 5)
    assert (kept["exp_avg_sq_row"] - row).norm() <= 20 * UNIT * row.norm()
    assert (kept["exp_avg_sq_col"] - col).norm() <= 20 * UNIT * col.norm()


def pair(mean: Tensor, spread: Tensor) -> dict[str, Tensor]:
    return {"exp_avg": mean, "exp_avg_var": spread}


def test_adafactors_decay_is_bounded() -> None:
    assert Adafactor().decay(1) == 0.0 and Adafactor().decay(100) == 1 - 100**-0.8
    assert Adafactor(0.9).decay(100) == 0.9 and Adafactor().decay(10_000) == 0.999
    assert float(Adafactor(0.9).decay(torch.tensor(100.0))) == pytest.approx(0.9)


@pytest.mark.filterwarnings("ignore:GaLoreAdamW")  # that nothing is projected is meant so
def test_what_is_not_projected_has_adamw() -> None:
    grads = [draw(7, seed=step) for step in range(3)]
    found = [
        of(GaLoreAdamW([nn.Parameter(torch.zeros(7))], 1.0, rank=3, rule=rule), grads) for rule in ("adam", *PLAIN)
    ]
    assert all(same(one, found[0]) for one in found)


def test_refusals() -> None:
    weight = nn.Parameter(draw(6, 8))
    with pytest.raises(
        ValueError, match="GaLoreAdamW: `rule` must be one of adam, adafactor, lion, adabelief, got 'sgd'"
    ):
        GaLoreAdamW([weight], rank=2, rule="sgd")
    with pytest.raises(ValueError, match=r"estimate_state_bytes: `rule` must be one of adam, .*, got 'sgd'"):
        estimate_state_bytes([(6, 8)], rank=2, rule="sgd")
    for betas in ((0.9,), (0.9, 1.0), "ab", 0.9):
        with pytest.raises(ValueError, match=r"GaLoreAdamW: `betas` must be two numbers in \[0, 1\)"):
            GaLoreAdamW([weight], rank=2, rule="lion", betas=betas)
    optimizer = GaLoreAdamW([weight], rank=2, rule="lion")
    weight.grad = draw(6, 8)
    optimizer.step()
    optimizer.param_groups[0]["rule"] = "adam"
    with pytest.raises(ValueError, match="must hold exp_avg, exp_avg_sq, "):
        optimizer.step()
    with pytest.raises(ValueError, match="must hold exp_avg, exp_avg_sq, "):
        GaLoreAdamW([weight], rank=2).load_state_dict(
            {**optimizer.state_dict(), "param_groups": [{**optimizer.param_groups[0], "params": [0]}]}
        )

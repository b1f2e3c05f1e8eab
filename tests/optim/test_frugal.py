"""FRUGAL: 50 steps against the formulas in NumPy for each kind of subspace, its draws, and what its state is."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from lowrank_core.optim import FrugalAdamW, estimate_state_bytes
from lowrank_core.optim.seeds import mix_seed
from numpy import ndarray
from optim_cases import draw, same
from plain_steps import UNIT, Adam, gradients, normal, of, path
from torch import nn

__all__ = ["path"]  # a fixture
with_both_paths = pytest.mark.usefixtures("path")
STEPS, GAP, SEED = 50, 7, 11
LR, BETAS, EPS, DECAY, SIGN = 0.05, (0.8, 0.95), 1e-4, 0.02, 0.5
SHAPES = ((14, 9), (9, 14), (10, 10))


def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=dtype))


def lines(count: int, rank: int, refresh: int) -> ndarray:
    """Which of `count` lines the second weight takes after `refresh` draws before: those of the smallest numbers."""
    numbers = normal(1, count, mix_seed(SEED, 1, refresh))[0]
    return np.sort(np.argsort(numbers, kind="stable")[:rank])


class Plain:
    """One weight in float64, in an orthonormal basis of what is taken."""

    def __init__(self, weight: ndarray) -> None:
        self.weight = weight
        self.restart()

    def restart(self) -> None:
        self.adam = Adam(BETAS, EPS)

    def step(self, grad: ndarray, basis: ndarray | None, left: bool = True) -> None:
        """`basis` [m, r] on the left or [n, r] on the right; None: all is taken."""
        taken = np.eye(len(grad)) if basis is None else basis @ basis.T
        low = grad if basis is None else basis.T @ grad if left else grad @ basis
        inside = self.adam.direction(low)
        if basis is not None:
            inside = basis @ inside if left else inside @ basis.T
        rest = grad - (taken @ grad if left else grad @ taken)
        noise = 8 * UNIT * np.sqrt(low.size) * np.abs(grad).max()
        self.move(inside + SIGN * np.where(np.abs(rest) > noise, np.sign(rest), 0))

    def move(self, direction: ndarray) -> None:
        self.weight = (1 - LR * DECAY) * self.weight - LR * direction


def stepped(shape: tuple[int, int], **keys: Any) -> tuple[nn.Parameter, FrugalAdamW, Plain]:
    start = np.random.default_rng(1).standard_normal(shape)
    weight = nn.Parameter(torch.from_numpy(start.copy()))
    shared: dict[str, Any] = {"sign_scale": SIGN, "update_proj_gap": GAP, "seed": SEED}
    optimizer = FrugalAdamW([zeros(4, 9), weight], LR, BETAS, EPS, DECAY, **{**shared, **keys})
    return weight, optimizer, Plain(start.copy())


@with_both_paths
@pytest.mark.parametrize("amount", [{"rank": 3}, {"density": 0.35}, {"rank": 0.35}], ids=str)
@pytest.mark.parametrize("subspace", ["columns", "rows", "random", "svd"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_formulas(shape: tuple[int, int], subspace: str, amount: dict[str, Any]) -> None:
    weight, optimizer, plain = stepped(shape, subspace=subspace, **amount)
    left = subspace == "rows" or (subspace in ("random", "svd") and shape[0] < shape[1])
    count = {"columns": shape[1], "rows": shape[0]}.get(subspace, min(shape))
    rank = 3 if amount == {"rank": 3} else int(0.35 * count)
    bases: list[ndarray] = []
    for step, grad in enumerate(gradients(shape, STEPS)):
        weight.grad = torch.from_numpy(grad)
        before = plain.weight
        optimizer.step()
        state = optimizer.state[weight]
        if step % GAP == 0:
            plain.restart()
            if subspace in ("columns", "rows"):
                bases.append(np.eye(count)[:, lines(count, rank, step // GAP)])
            else:
                bases.append(state["proj.basis"].numpy().copy())
                assert bases[-1].shape == (count, rank)
                assert np.abs(bases[-1].T @ bases[-1] - np.eye(rank)).max() <= 20 * UNIT * count
        plain.step(grad, bases[-1], left)
        apart = np.abs(weight.detach().numpy() - plain.weight).max()
        # Sums of 14 products, twice; the quotient of Adam magnifies what its moments are off by at most 1 / eps.
        bound = LR * 100 * UNIT * np.abs(grad).max() / EPS
        assert apart <= (step + 1) * bound, step
        assert np.abs(plain.weight - before).max() > 1e4 * bound
        assert 0 < float(state["proj.captured"]) < 1
    assert all(np.abs(a - b).max() > 0.1 for a, b in pairwise(bases))
    assert optimizer.projections()[1].refreshes == -(-STEPS // GAP)


def test_a_random_basis_points_anywhere_and_an_svd_where_the_gradient_does() -> None:
    grad = torch.from_numpy(gradients((14, 9), 1)[0])
    shares = {}
    for subspace in ("random", "svd"):
        weight, optimizer, _ = stepped((14, 9), subspace=subspace, rank=3)
        weight.grad = grad
        optimizer.step()
        shares[subspace] = float(optimizer.state[weight]["proj.captured"])
    best = float(torch.linalg.svdvals(grad)[:3].square().sum() / grad.square().sum())
    assert abs(shares["svd"] - best) < 2.0**-22 and shares["random"] < 0.8 * best


@with_both_paths
def test_blocks() -> None:
    """Some of the matrices whole, each time others; the rest by the sign alone, and without a state."""
    shapes = [(6, 8), (8, 6), (5, 5), (4, 9), (9, 4)]
    starts = [np.random.default_rng(i).standard_normal(shape) for i, shape in enumerate(shapes)]
    weights = [nn.Parameter(torch.from_numpy(start.copy())) for start in starts]
    keys: dict[str, Any] = {"subspace": "block", "density": 0.4, "sign_scale": SIGN, "update_proj_gap": GAP}
    optimizer = FrugalAdamW(weights, LR, BETAS, EPS, DECAY, seed=SEED, **keys)
    plain = [Plain(start.copy()) for start in starts]
    seen: set[int] = set()
    for step in range(STEPS):
        keyed = [mix_seed(SEED, step // GAP, i) for i in range(5)]
        active = [keyed.index(key) for key in sorted(keyed)[:2]]
        seen |= set(active)
        for i, (weight, reference) in enumerate(zip(weights, plain, strict=True)):
            grad = draw(*shapes[i], seed=100 * step + i).double().numpy()
            weight.grad = torch.from_numpy(grad)
            if step % GAP == 0:
                reference.restart()
            if i in active:
                reference.step(grad, None)
            else:
                reference.move(SIGN * np.sign(grad))
        optimizer.step()
        for i, (weight, reference) in enumerate(zip(weights, plain, strict=True)):
            assert optimizer.state[weight]["proj.rank"] == (min(shapes[i]) if i in active else 0)
            assert np.abs(weight.detach().numpy() - reference.weight).max() <= (step + 1) * 100 * UNIT / EPS * LR
        held = sum(16 * np.prod(shapes[i]) for i in active)
        assert optimizer.state_bytes() == held + 4 * 5 <= optimizer.planned_state_bytes()
    assert optimizer.planned_state_bytes() == 2 * 16 * 48 + 4 * 5  # of the two largest ones
    assert seen == set(range(5))
    estimated = estimate_state_bytes(shapes, "frugal", dtype="float64", subspace="block", density=0.4)
    assert estimated == optimizer.planned_state_bytes()


@with_both_paths
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("keys", [{"density": 1.0}, {"rank": "full"}, {"rank": 1.0}, {"rank": 40}], ids=str)
@pytest.mark.parametrize("subspace", ["columns", "rows", "random", "svd"])
@pytest.mark.filterwarnings("ignore:.* nothing is projected at rank:UserWarning")
def test_g9_all_of_it_is_adamw(subspace: str, keys: dict[str, Any], dtype: torch.dtype) -> None:
    ends = []
    for kind, own in ((FrugalAdamW, {**keys, "subspace": subspace}), (torch.optim.AdamW, {})):
        weight = nn.Parameter(draw(6, 8).to(dtype))
        optimizer = kind([weight], lr=0.1, weight_decay=0.1, **own)
        for step in range(5):
            weight.grad = draw(6, 8, seed=step).to(dtype)
            optimizer.step()
        ends.append(weight.detach())
    assert same(*ends)


@with_both_paths
@pytest.mark.parametrize("subspace", ["columns", "rows", "random", "svd", "block"])
def test_g9_nothing_of_it_is_the_sign(subspace: str) -> None:
    """Also of zeros, which stay, and of numbers of any size."""
    weight = nn.Parameter(draw(6, 8).double())
    expected = weight.detach().clone()
    keys: dict[str, Any] = {"lr": 2.0**-6, "weight_decay": 0.5, "sign_scale": 0.25}
    optimizer = FrugalAdamW([weight], density=0.0, subspace=subspace, **keys)
    for step in range(4):
        grad = 10.0 ** (100 * draw(6, 8, seed=step).double().clamp(-2, 2)) * draw(6, 8, seed=step + 9).sign()
        grad[step] = 0
        weight.grad = grad
        optimizer.step()
        expected = expected * (1 - 2.0**-7) - 2.0**-8 * grad.sign()
        assert same(weight.detach(), expected)
    assert optimizer.state_bytes() <= 8 and "proj.basis" not in optimizer.state[weight]


@pytest.mark.parametrize(("subspace", "shape"), [("columns", (6, 1)), ("rows", (1, 8)), ("svd", (1, 8))])
def test_a_small_density_takes_one_line(subspace: str, shape: tuple[int, int]) -> None:
    weight = zeros(6, 8)
    optimizer = FrugalAdamW([weight], density=1e-3, subspace=subspace)
    of(optimizer, [draw(6, 8).double()])
    assert optimizer.state[weight]["exp_avg"].shape == shape


def test_a_small_density_takes_one_block() -> None:
    weights = [zeros(6, 8) for _ in range(3)]
    optimizer = FrugalAdamW(weights, density=1e-3, subspace="block")
    for weight in weights:
        weight.grad = draw(6, 8).double()
    optimizer.step()
    assert sorted(optimizer.state[weight]["proj.rank"] for weight in weights) == [0, 0, 6]
    assert optimizer.state_bytes() == optimizer.planned_state_bytes()


@with_both_paths
@pytest.mark.parametrize("subspace", ["columns", "rows", "random", "svd"])
def test_moments_and_their_count_start_again(subspace: str) -> None:
    """Without eps the first N after a draw is the sign of R, however many steps there were before."""
    keys: dict[str, Any] = {"rank": 4, "subspace": subspace, "eps": 0.0, "update_proj_gap": 3, "sign_scale": 0}
    updates = of(FrugalAdamW([zeros(12, 20)], lr=1.0, **keys), [draw(12, 20, seed=step).double() for step in range(9)])
    for step, update in enumerate(updates):
        first = (4 * (12 if subspace == "columns" else 20)) ** 0.5  # of as many entries of size 1
        assert (abs(float(update.norm()) - first) <= 100 * UNIT * first) == (step % 3 == 0), step


@with_both_paths
@pytest.mark.parametrize("subspace", ["random", "svd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_sign_of_rounding_is_zero(subspace: str, dtype: torch.dtype) -> None:
    """A gradient that the subspace holds whole leaves nothing to take the sign of."""
    weight = zeros(30, 40, dtype=dtype)
    optimizer = FrugalAdamW([weight], lr=1.0, rank=16, subspace=subspace, eps=1e30)
    of(optimizer, [draw(30, 40).to(dtype)])
    inside = optimizer.state[weight]["proj.basis"] @ draw(16, 40, seed=3).to(dtype)
    (update,) = of(optimizer, [inside])
    assert bool(update.any()) and not bool((update.abs() == 1).any())  # N is there, and next to nothing by eps
    (update,) = of(optimizer, [draw(30, 40, seed=5).to(dtype)])
    assert int((update.abs() == 1).sum()) > 1000


@pytest.mark.parametrize("keys", [{}, {"subspace": "block"}, {"subspace": "svd"}, {"density": 0.0}], ids=str)
def test_a_gradient_of_zeros_moves_nothing_and_draws_nothing(keys: dict[str, Any]) -> None:
    weight = nn.Parameter(draw(6, 8))
    optimizer = FrugalAdamW([weight], lr=0.5, **keys)
    for grad in (torch.zeros(6, 8), torch.ones(6, 8)):
        before, weight.grad = weight.detach().clone(), grad
        optimizer.step()
        assert torch.equal(before, weight) != bool(grad.any())
    assert optimizer.projections()[0].refreshes == 1


def test_draws_of_a_period_are_its_own() -> None:
    """The words of stochastic rounding do not come again with the count."""
    weight = nn.Parameter(torch.full((16, 64), 1.0).bfloat16())
    optimizer = FrugalAdamW([weight], lr=1e-3, density=0.0, update_proj_gap=1, rounding="stochastic")
    found = []
    for _ in range(3):
        weight.detach().fill_(1.0)
        weight.grad = torch.ones(16, 64).bfloat16()
        optimizer.step()
        found.append(weight.detach() != 1)
    assert not any(torch.equal(found[i], found[j]) for i, j in ((0, 1), (1, 2), (0, 2)))


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("density", 1.5, r"be a number in \[0, 1\], or None, got 1.5"),
        ("density", -0.1, r"be a number in \[0, 1\], or None, got -0.1"),
        ("subspace", "randk", "be one of columns, rows, random, block, svd, got 'randk'"),
        ("sign_scale", -1.0, "be a number >= 0, got -1.0"),
        ("update_proj_gap", 0, "be an int >= 1, got 0"),
        ("rank", 0, "be an int >= 1, a share of .*, got 0"),
    ],
)
def test_refusals(key: str, value: Any, rule: str) -> None:
    for make in (
        lambda: FrugalAdamW([zeros(6, 8)], **{key: value}),
        lambda: FrugalAdamW([{"params": [zeros(6, 8)], key: value}]),
    ):
        with pytest.raises(ValueError, match=f"^FrugalAdamW: `{key}` must {rule}$"):
            make()

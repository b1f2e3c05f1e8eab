"""AdaRankGrad: 50 steps against the formulas in NumPy, its rank, its schedule and what it keeps."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import lowrank_core
import numpy as np
import pytest
import torch
from lowrank_core.optim import AdaRankGradAdamW, GaLoreAdamW, estimate_state_bytes
from lowrank_core.optim.devices import without_kernels
from lowrank_core.optim.parts.projectors.by_energy import ByEnergy
from lowrank_core.optim.parts.rules.adam import Adam
from lowrank_core.optim.parts.schedules.convergence import Convergence
from numpy import ndarray
from optim_cases import composed, draw, same
from plain_steps import path
from test_rules import Turned
from torch import Tensor, nn

__all__ = ["path"]  # a fixture
with_both_paths = pytest.mark.usefixtures("path")
STEPS, GAP, ENERGY, FADED = 50, 17, 0.9, 0.6
LR, BETAS, EPS, DECAY, SCALE = 0.05, (0.8, 0.95), 1e-4, 0.02, 0.4


def gradient(shape: tuple[int, int], step: int) -> ndarray:
    """Of slowly turning directions, whose spread rises and falls and which fade after step 17."""
    draws, rank = np.random.default_rng(3), min(shape)
    left, right = (np.linalg.qr(draws.standard_normal((side, rank)))[0] for side in shape)
    turned = np.linalg.qr(left + 0.02 * step * draws.standard_normal(left.shape))[0]
    ratio = 0.75 + 0.21 * np.sin(0.2 * step)  # from one singular value to the next
    return (turned * ratio ** np.arange(rank)) @ right.T * 0.7 ** max(0, step - GAP)


class Plain:
    """One weight [m, n] whose basis is on the left, in float64, with exact singular vectors."""

    def __init__(self, weight: ndarray) -> None:
        self.weight, self.count, self.looked, self.first, self.norm = weight, 0, 0, 0.0, 0.0
        self.basis: Any = None
        self.mean: Any = 0.0
        self.square: Any = 0.0
        self.ranks: dict[int, int] = {}  # by the step at which each was found

    def due(self) -> bool:
        since = self.count - self.looked
        return self.count % GAP == 0 or (since % 10 == 0 and self.norm <= FADED * self.first)

    def look(self, grad: ndarray) -> None:
        u, values, _ = np.linalg.svd(grad, full_matrices=False)
        share = np.cumsum(values**2) / np.sum(values**2)
        rank = min(-(-(int(np.argmax(share >= ENERGY)) + 1) // 8) * 8, len(values))
        self.ranks[self.count] = rank
        new, (b1, b2), t = u[:, :rank], BETAS, self.count
        if self.basis is not None:
            turn = new.T @ self.basis
            mean = turn @ self.mean
            spread = self.square / (1 - b2**t) - (self.mean / (1 - b1**t)) ** 2
            self.square = (1 - b2**t) * np.abs(turn**2 @ spread + (mean / (1 - b1**t)) ** 2)
            self.mean = mean
        self.basis, self.looked, self.first = new, self.count, 0.0

    def step(self, grad: ndarray) -> None:
        if self.due():
            self.look(grad)
        low, (b1, b2) = self.basis.T @ grad, BETAS
        size = float(np.linalg.norm(low))
        self.norm = size if self.first == 0 else 0.9 * self.norm + 0.1 * size
        self.first = self.first or size
        self.mean, self.square = b1 * self.mean + (1 - b1) * low, b2 * self.square + (1 - b2) * low**2
        self.count += 1
        root = np.sqrt(self.square / (1 - b2**self.count)) + EPS
        inside = self.mean / (1 - b1**self.count) / root
        self.weight = (1 - LR * DECAY) * self.weight - LR * SCALE * self.basis @ inside


@with_both_paths
@pytest.mark.parametrize(("shape", "proj_type"), [((26, 40), "std"), ((40, 26), "std"), ((26, 26), "reverse_std")])
def test_the_formulas(shape: tuple[int, int], proj_type: str) -> None:
    """The search is exact where it may take all directions."""
    turn = (lambda x: x.T) if shape[0] > shape[1] else (lambda x: x)
    start = np.random.default_rng(1).standard_normal(shape)
    plain, weight = Plain(turn(start).copy()), nn.Parameter(torch.from_numpy(start.copy()))
    keys: dict[str, Any] = {"rank": 26, "force_projection": True, "energy": ENERGY, "convergence": FADED}
    optimizer = AdaRankGradAdamW(
        [weight], LR, BETAS, EPS, DECAY, update_proj_gap=GAP, scale=SCALE, proj_type=proj_type, **keys
    )
    for number in range(STEPS):
        grad = gradient(shape, number)
        weight.grad, before = torch.from_numpy(grad), plain.weight
        plain.step(turn(grad))
        optimizer.step()
        assert optimizer.state[weight]["proj.rank"] == plain.basis.shape[1], f"step {number}"
        moved = np.linalg.norm(plain.weight - before)
        assert np.linalg.norm(turn(weight.detach().numpy()) - plain.weight) <= 2.0**-20 * moved, f"step {number}"
    assert plain.ranks.keys() == {0, 17, 27, 34, 44} and len(set(plain.ranks.values())) > 1
    assert optimizer.projections()[0].last_refresh_step == 44


def with_values(values: Any, m: int = 40, n: int = 56) -> Tensor:
    """[m, n] with these singular values."""
    count = len(values)
    left, right = (torch.linalg.qr(draw(side, count, seed=side).double())[0] for side in (m, n))
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.mT


def rank_of(grad: Tensor, **keys: Any) -> int:
    weight = nn.Parameter(torch.zeros_like(grad))
    optimizer = AdaRankGradAdamW([weight], **{"rank": 32, **keys})
    weight.grad = grad
    optimizer.step()
    rank: int = optimizer.state[weight]["proj.rank"]
    basis = optimizer.state[weight]["proj.basis"].double()
    assert basis.shape[1] == rank and (basis.mT @ basis - torch.eye(rank)).abs().max() <= 2 * 56 * 2.0**-24
    return rank


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("count", "keys", "rank"),
    [
        (32, {"energy": 0.2}, 8),  # 6.4 of 32 equal directions
        (32, {"energy": 0.26}, 16),  # 8.3
        (32, {"energy": 0.74}, 24),
        (32, {"energy": 1.0}, 32),
        (32, {"energy": 0.26, "rank": 12}, 12),  # the largest
        (32, {"energy": 0.26, "rank": 30, "max_rank": 12}, 12),
        (32, {"energy": 0.01, "min_rank": 17}, 24),
        (5, {"energy": 0.2}, 5),  # that many directions, and none is made up
        (5, {"energy": 0.2, "min_rank": 9}, 5),
        (1, {}, 1),
    ],
)
def test_g17_the_rank(count: int, keys: dict[str, Any], rank: int, dtype: torch.dtype, kernels: bool) -> None:
    """The smallest that holds the energy, rounded up to 8 by honest directions. Values are apart by a little."""
    grad = with_values([1 + 0.001 * i for i in range(count)][::-1]).to(dtype)
    if kernels:
        assert rank_of(grad, **keys) == rank == rank_of(grad.mT, **keys)
        return
    with without_kernels():
        assert rank_of(grad, **keys) == rank


def test_the_count_is_of_shares() -> None:
    shares = torch.tensor([0.5, 0.8, 0.9, 0.95, 0.99, 0.999, *[0.9999] * 20], dtype=torch.float64)
    for energy, least in ((0.4, 8), (0.9999, 8), (1.0, 26)):
        assert ByEnergy(energy=energy).rank_for(shares) == least
    assert ByEnergy(energy=0.4, min_rank=9).rank_for(shares) == 16


def test_directions_are_the_leading_ones() -> None:
    grad = with_values([0.7**i for i in range(30)])
    weight = nn.Parameter(torch.zeros_like(grad))
    optimizer = AdaRankGradAdamW([weight], rank=32, energy=0.999, proj_type="left")
    weight.grad = grad
    optimizer.step()
    basis = optimizer.state[weight]["proj.basis"]
    expected = torch.linalg.svd(grad).U[:, : basis.shape[1]]
    assert basis.shape[1] == 16  # 0.7^(2 k) <= 0.001 at k = 10
    assert (expected - basis @ (basis.mT @ expected)).norm() <= 0.01
    assert float(optimizer.projections()[0].captured or 0) >= 0.999


def refreshes(sizes: list[float], **keys: Any) -> list[int]:
    """The steps before which a subspace was looked for, with gradients of those sizes."""
    weight = nn.Parameter(torch.zeros(24, 40))
    optimizer = AdaRankGradAdamW([weight], **{"rank": 8, "lr": 0.0, **keys})
    found = []
    for step, size in enumerate(sizes):
        weight.grad = size * draw(24, 40)
        before = optimizer.projections()[0].refreshes
        optimizer.step()
        found += [step] * (optimizer.projections()[0].refreshes - before)
    return found


@with_both_paths
def test_when_the_subspace_has_done_its_work() -> None:
    """A mean with memory 0.9 is below 0.3 after 12 gradients of 0.001; it is looked at every tenth step."""
    assert refreshes([1.0] * 60) == [0]
    assert refreshes([1.0] + [1e-3] * 45) == [0, 20]
    assert refreshes([1.0] + [1e-3] * 45, convergence=0.5) == [0, 10]
    assert refreshes([1.0] + [1e-3] * 45, convergence=0.0) == [0]
    assert refreshes([1.0] * 60, update_proj_gap=25) == [0, 25, 50]
    assert refreshes([0.0] * 25 + [1.0] * 5) == [25]
    assert refreshes([1.0] + [0.0] * 60)[:2] == [0]  # zeros have faded, but name no subspace
    for first, mean, done in ((1.0, 0.3, True), (1.0, 0.31, False), (0.0, 0.0, False)):
        state = {"convergence.first": torch.tensor(first), "convergence.mean": torch.tensor(mean)}
        assert Convergence(share=float(torch.tensor(0.3))).converged(state) is done


def test_the_norms_are_part_of_the_state() -> None:
    weight = nn.Parameter(draw(24, 40))
    optimizer = AdaRankGradAdamW([weight], 0.01, rank=8)
    for step in range(7):
        weight.grad = draw(24, 40, seed=step) * 0.5**step
        optimizer.step()
    twin = copy.deepcopy(weight)
    other = AdaRankGradAdamW([twin], 0.01, rank=8)
    other.load_state_dict(optimizer.state_dict())
    for step in range(7, 24):
        weight.grad = draw(24, 40, seed=step) * 0.5**7
        twin.grad = weight.grad.clone()
        optimizer.step()
        other.step()
    assert same(optimizer.state_dict(), other.state_dict()) and same(weight.detach(), twin.detach())
    assert optimizer.projections()[0].refreshes > 1


def test_g17_moments_travel_and_none_is_negative() -> None:
    mean, square = draw(6, 9).double(), draw(6, 9, seed=1).double().square()
    kept = Adam().turned({"exp_avg": mean, "exp_avg_sq": square}, Turned(torch.eye(6, dtype=torch.float64)), 5)
    assert torch.equal(kept["exp_avg"], mean)
    assert (kept["exp_avg_sq"] - square).abs().max() <= 100 * 2.0**-53 * float(square.max() + 100 * mean.square().max())
    for rank in (3, 6):
        turn = Turned(torch.linalg.qr(draw(8, 8, seed=2).double())[0][:rank, :6])
        assert bool((Adam().turned({"exp_avg": mean, "exp_avg_sq": square}, turn, 5)["exp_avg_sq"] >= 0).all())


def test_memory_holds_the_rank_of_the_moment() -> None:
    weight = nn.Parameter(torch.zeros(24, 40))
    optimizer = AdaRankGradAdamW([weight], rank=16, update_proj_gap=1)
    held = []
    for count in (20, 3, 20):
        weight.grad = with_values([1.0] * count, 24, 40).float()
        optimizer.step()
        held.append(optimizer.state_bytes())
    assert (
        held[0]
        == held[2]
        == optimizer.planned_state_bytes()
        == estimate_state_bytes([(24, 40)], "adarankgrad", rank=16)
    )
    galore = estimate_state_bytes([(24, 40)], "galore", rank=3)
    assert held[1] == galore + 8  # two norms


def test_g1_where_all_energy_is_asked_for_it_is_galore_that_rotates() -> None:
    """Both are exact at full rank: the steps are those of one subspace, whatever its basis was found by."""
    ends = []
    for kind, keys in ((AdaRankGradAdamW, {"energy": 1.0}), (GaLoreAdamW, {"moments": "rotate"})):
        weight = nn.Parameter(draw(16, 24).double())
        optimizer = kind([weight], 0.05, rank=16, force_projection=True, update_proj_gap=3, **keys)  # type: ignore[arg-type]
        for step in range(9):
            weight.grad = draw(16, 24, seed=step + 1).double()
            optimizer.step()
        ends.append(weight.detach())
    assert (ends[0] - ends[1]).norm() <= 2.0**-20 * (ends[0] - draw(16, 24)).norm()


def test_both_paths_search_alike() -> None:
    found = []
    for way in (nullcontext, composed):
        weight = nn.Parameter(draw(24, 40))
        optimizer = AdaRankGradAdamW([weight], 0.01, rank=16)
        weight.grad = draw(24, 40, seed=1)
        with way():
            optimizer.step()
        found.append(optimizer.state[weight]["proj.basis"].clone())
    assert torch.equal(*found)
    seen = lowrank_core.qb(
        draw(24, 40, seed=1),
        tol=2e-3,
        max_rank=16,
        seed=optimizer.slots()[0].search_seed(0),
    )
    assert torch.equal(found[0], seen.q[:, : found[0].shape[1]])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"energy": 0.0}, r"AdaRankGradAdamW: `energy` must be a number in \(0, 1\], got 0.0"),
        ({"energy": 1.5}, r"AdaRankGradAdamW: `energy` must be a number in \(0, 1\], got 1.5"),
        ({"min_rank": 0}, "AdaRankGradAdamW: `min_rank` must be an int >= 1, got 0"),
        ({"max_rank": 0}, "AdaRankGradAdamW: `max_rank` must be an int >= 1, .* got 0"),
        ({"convergence": 1.0}, r"AdaRankGradAdamW: `convergence` must be a number in \[0, 1\), got 1.0"),
        ({"niter": -1}, "AdaRankGradAdamW: `niter` must be an int >= 0, got -1"),
        ({"proj_type": "full"}, "AdaRankGradAdamW: `proj_type` must be one of std, .*, got 'full'"),
    ],
)
def test_refusals(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaRankGradAdamW([nn.Parameter(draw(8, 9))], rank=2, **keys)


def test_the_largest_rank_of_a_state_stays() -> None:
    weight = nn.Parameter(draw(24, 40))
    optimizer = AdaRankGradAdamW([weight], rank=16)
    weight.grad = draw(24, 40, seed=1)
    optimizer.step()
    optimizer.param_groups[0]["max_rank"] = 4
    with pytest.raises(ValueError, match="must stay what its state was made with"):
        optimizer.step()

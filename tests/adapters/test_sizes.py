"""The numbers in the formulas: how much is added, drawn, lumped and forgotten, each against its plain statement."""

from __future__ import annotations

import math

import pytest
import torch
from lowrank_core.adapters import cotangents, kalman, noise
from testing import cases, tolerance
from torch import Tensor

GAMMA = tolerance.gamma(100, torch.float64)


def close(x: Tensor, y: Tensor) -> bool:
    return bool((x - y).abs().max() <= GAMMA * float(y.abs().max()))


def spd(m: int, seed: int) -> Tensor:
    root = cases.gaussian(m, m, seed=seed)
    return root @ root.mT


# ---- deflation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [1, 2, 5, 8])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_deflation_adds_the_mean_eigenvalue_along_one(m: int, size: float) -> None:
    """11ᵀ/m is the projection on 1: along it tr(A + R) / m is added, the mean eigenvalue of A + R, and nothing else."""
    r, a = size * spd(m, 1), size * spd(m, 2)
    added = kalman.deflate(r, a) - r
    mean = float(torch.linalg.eigvalsh(a + r).mean())
    assert close(added, torch.full((m, m), mean / m, dtype=torch.float64))
    along = torch.ones(m, dtype=torch.float64) / m**0.5
    assert abs(float(along @ added @ along) - mean) <= GAMMA * mean


# ---- forgetting ----------------------------------------------------------------------------------------------------


def test_fading_is_at_its_published_rate() -> None:
    """lambda_0 = 0.98 and nu = 0.9987: what is forgotten, 1 - lambda, shrinks by nu a step, by half in 533."""
    assert (kalman.FADING_START, kalman.FADING_RATE) == (0.98, 0.9987)
    factor, factors = 0.98, []
    for step in range(1, 534):
        factor = kalman.next_fading(factor)
        factors.append(factor)
        assert abs(factor - (1 - 0.02 * 0.9987**step)) <= step * GAMMA
    assert factors == sorted(factors) and factors[-1] > 1 - 0.02 / 2 > factors[-2]
    assert abs(kalman.next_fading(0.5, rate=0.25) - 0.875) <= GAMMA
    assert abs(kalman.next_fading(1.0) - 1.0) <= GAMMA


def test_variances_fade_by_the_factor_itself() -> None:
    p = torch.tensor([0.5, 2.0], dtype=torch.float64)
    assert torch.equal(kalman.fade(p, 0.5), 2 * p)
    assert torch.equal(kalman.predict_variance(p, q=0.25, alpha=1.0, gamma=0.5), 2 * (0.25 * p + 0.25))


# ---- rows that are drawn -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 4, 9])
def test_drawn_rows_are_errors_of_drawn_labels_over_the_root_of_their_number(samples: int) -> None:
    """Times √samples and with ŷ added each row is one-hot, for every token; the score is whole, whatever the number."""
    logits, target = cases.gaussian(3, 5, seed=6), torch.tensor([1, 4, 0])
    y = torch.softmax(logits, -1)
    rows = cotangents.monte_carlo_cotangents(logits, target, samples=samples, seed=2)
    labels = rows[:-1] * math.sqrt(samples) + y
    hot = torch.nn.functional.one_hot(labels.argmax(-1), 5).double()
    assert bool(((labels - hot).abs() <= GAMMA).all())
    assert bool((rows[-1] - (torch.nn.functional.one_hot(target, 5) - y)).abs().max() <= GAMMA)


def test_the_fisher_matrix_does_not_grow_with_the_number_of_draws() -> None:
    """Its trace in the mean over seeds: 1 - Σŷ² a token, for any number of samples. Six standard errors."""
    logits, target = cases.gaussian(1, 5, seed=6), torch.tensor([1])
    exact = 1 - float(torch.softmax(logits, -1).square().sum())
    for samples in (1, 3, 12):
        traces = torch.stack([
            cotangents.monte_carlo_cotangents(logits, target, samples=samples, seed=seed)[:-1].square().sum()
            for seed in range(400)
        ])  # fmt: skip
        assert abs(float(traces.mean()) - exact) <= tolerance.LAMBDA * float(traces.std()) / 400**0.5


# ---- classes that are lumped ---------------------------------------------------------------------------------------


def lumped_fisher(y: Tensor, kept: list[int]) -> Tensor:
    """Of the observation "one of `kept`, or another": Σ over outcomes of the outer product of the log-probability's
    gradient in the logits, times the probability."""
    rest = [i for i in range(y.numel()) if i not in kept]
    outcomes = [[i] for i in kept] + ([rest] if rest else [])
    total = torch.zeros(y.numel(), y.numel(), dtype=torch.float64)
    for outcome in outcomes:
        inside = torch.zeros_like(y)
        inside[outcome] = y[outcome] / y[outcome].sum()
        total += y[outcome].sum() * torch.outer(inside - y, inside - y)
    return total


@pytest.mark.parametrize("gap", [0.0, 3.0, 20.0, 60.0, 300.0])
@pytest.mark.parametrize("target", [0, 5])
def test_lumping_is_the_fisher_matrix_of_the_coarser_observation(target: int, gap: float) -> None:
    """However little the rest weighs: here down to exp(-300) of the whole, the target among the kept or apart."""
    logits = torch.tensor([2.0, 1.5, 1.0, -gap, -gap - 0.5, -gap - 1.0], dtype=torch.float64)
    y = torch.softmax(logits, -1)
    rows = cotangents.lumped_cotangents(logits, torch.tensor(target), keep=3)[:-1]
    exact = lumped_fisher(y, [0, 1, 2] + [target] * (target == 5))
    assert close(rows.mT @ rows, exact)
    # What lies in the small block alone is right relative to its own size, which no bound on the whole would show.
    small = slice(3, 5)
    found, wanted = (rows.mT @ rows)[small, small], exact[small, small]
    assert float(wanted.abs().max()) > 0 and close(found, wanted)


def test_the_rest_has_a_row_unless_it_weighs_nothing() -> None:
    """As long as its probability is a number above 0."""
    for gap, there in ((700.0, True), (800.0, False)):  # exp(-745) is the least number above 0
        rows = cotangents.lumped_cotangents(torch.tensor([0.0, -gap]).double(), torch.tensor(0), keep=1)[:-1]
        assert bool(rows[-1].any()) == there
    whole = cotangents.lumped_cotangents(torch.zeros(4).double(), torch.tensor(0), keep=4)[:-1]
    assert not whole[-1].any() and not whole[-2].any()


# ---- the defaults of the estimators --------------------------------------------------------------------------------


def test_running_means_start_at_one_and_weigh_the_past_at_095() -> None:
    e, a = cases.gaussian(1, 3, seed=1)[0], spd(3, 2)
    eye = torch.eye(3, dtype=torch.float64)
    found = noise.noise_policy("ema_pre", 3).before(e, a)
    assert close(found, 0.95 * eye + 0.05 * (torch.outer(e, e) + a))
    post = noise.noise_policy("ema_post", 3)
    post.after(e, a, a / 2)
    left = torch.linalg.solve(a + eye, e)
    assert close(post.r, 0.95 * eye + 0.05 * (torch.outer(left, left) + a / 2))


def test_floors_and_constants_of_the_other_estimators() -> None:
    zero, eye = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    assert close(noise.noise_policy("scalar", 3).before(zero, 0 * eye), 1e-6 * eye)
    assert close(noise.noise_policy("fixed", 3).before(zero, 0 * eye), eye)
    error = torch.tensor([0.5, -0.25, -0.25], dtype=torch.float64)
    y = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    assert close(noise.noise_policy("ggn", 3).before(error, 0 * eye), torch.diag(y) - torch.outer(y, y) + 1e-2 * eye)
    innovation = noise.noise_policy("innovation", 3)
    innovation.r = -eye
    assert close(innovation.before(zero, eye), 1e-6 * eye)

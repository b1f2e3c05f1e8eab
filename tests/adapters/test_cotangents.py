"""Observations of class logits: the softmax form, lumped classes, drawn labels."""

from __future__ import annotations

import adapter_cases
import lowrank_core as lc
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lowrank_core import adapters
from lowrank_core.adapters import cotangents, kalman
from testing import cases, checks, tolerance
from torch import Tensor

GAMMA = tolerance.gamma(100, torch.float64)
logits_of = st.integers(2, 9).flatmap(
    lambda c: st.tuples(st.integers(0, 2**16), st.just(c), st.integers(0, c - 1), st.sampled_from((1.0, 20.0)))
)


def drawn(case: tuple[int, int, int, float]) -> tuple[Tensor, Tensor]:
    seed, c, target, scale = case
    return scale * cases.gaussian(1, c, seed=seed)[0], torch.tensor(target)


def fisher(logits: Tensor) -> Tensor:
    y = torch.softmax(logits, -1)
    return torch.diag(y) - torch.outer(y, y)


@given(logits_of)
def test_the_softmax_root_is_exact(case: tuple[int, int, int, float]) -> None:
    logits, _ = drawn(case)
    root = cotangents.softmax_root(logits)
    assert bool((root @ root.mT - fisher(logits)).abs().max() <= GAMMA)


@given(logits_of)
def test_the_last_row_is_the_score(case: tuple[int, int, int, float]) -> None:
    logits, target = drawn(case)
    leaf = logits.clone().requires_grad_()
    torch.nn.functional.cross_entropy(leaf, target).backward()
    for rows in (
        cotangents.softmax_cotangents(logits, target),
        cotangents.lumped_cotangents(logits, target, keep=2),
        cotangents.monte_carlo_cotangents(logits, target, samples=3, seed=1),
    ):
        assert bool((rows[-1] + leaf.grad).abs().max() <= GAMMA)


def test_the_softmax_form_is_the_filter_on_probabilities() -> None:
    """With R = Λ on all classes but one, minimal coordinates; also where a probability is 1e-12."""
    for scale in (1.0, 12.0):
        logits, target = scale * cases.gaussian(1, 5, seed=2)[0], torch.tensor(3)
        j, p = cases.gaussian(5, 40, seed=3), torch.full((40,), 0.1, dtype=torch.float64)
        zero = torch.zeros(40, dtype=torch.float64)
        found = lc.kalman_diag_step(zero, p, *kalman.softmax_observation(j, logits, target))
        y = torch.softmax(logits, -1)
        error = torch.nn.functional.one_hot(target, 5).double() - y
        gain = lc.kalman_diag_gain(p, (fisher(logits) @ j)[:4], fisher(logits)[:4, :4])
        # Λ without one class is inverted there, and here not: its condition is what they may differ by.
        relative = 40 * tolerance.gamma(45, torch.float64) * float(torch.linalg.cond(fisher(logits)[:4, :4]))
        exact = gain @ error[:4]
        assert bool((found.theta - exact).abs().max() <= relative * exact.abs().max())
        after = p - p * ((fisher(logits) @ j)[:4] * gain.mT).sum(0)
        assert bool((found.p - after).abs().max() <= relative * p.max())


def test_softmax_cotangents_give_that_observation() -> None:
    model, x, target = adapter_cases.net(), adapter_cases.tokens(), torch.tensor(2)
    params = adapter_cases.trainable(model)
    logits = model(x)
    jac, score = adapters.split_score(
        adapters.jacobian_rows(logits, params, cotangents.softmax_cotangents(logits, target), retain_graph=True)
    )
    want = kalman.softmax_observation(adapters.jacobian_rows(logits, params), logits, target)
    for found, exact in ((jac, want.jac), (score, want.score)):
        assert all(bool((a - b).abs().max() <= GAMMA * (1 + b.abs().max())) for a, b in zip(found, exact, strict=True))


def test_samples_are_stacked() -> None:
    """Rows of a batch are those of its samples one after the other; the score is the sum."""
    logits, target = cases.gaussian(3, 4, seed=1), torch.tensor([0, 3, 1])
    rows = cotangents.softmax_cotangents(logits, target)
    assert rows.shape == (3 * 4 + 1, 3, 4)
    for i in range(3):
        alone = cotangents.softmax_cotangents(logits[i], target[i])
        assert checks.same_bits(rows[4 * i : 4 * i + 4, i], alone[:-1]) and checks.same_bits(rows[-1, i], alone[-1])
        others = [j for j in range(3) if j != i]
        assert not rows[4 * i : 4 * i + 4, others].any()
    assert cotangents.lumped_cotangents(logits, target, keep=2).shape == (3 * 4 + 1, 3, 4)


@given(logits_of, st.integers(1, 10))
def test_lumping_keeps_the_score_and_bounds_the_fisher_matrix(case: tuple[int, int, int, float], keep: int) -> None:
    logits, target = drawn(case)
    rows = cotangents.lumped_cotangents(logits, target, keep=keep)
    assert rows.shape == (min(keep, logits.numel()) + 3, logits.numel())
    assert checks.same_bits(rows[-1], cotangents.softmax_cotangents(logits, target)[-1])
    lumped = rows[:-1].mT @ rows[:-1]
    least = torch.linalg.eigvalsh(fisher(logits) - lumped)[0]
    assert float(least) >= -GAMMA
    if keep >= logits.numel() - 2:  # at most one class is lumped with nothing
        assert bool((fisher(logits) - lumped).abs().max() <= GAMMA)


def test_lumping_many_classes_keeps_most_of_the_trace() -> None:
    logits = 2 * cases.gaussian(1, 50, seed=4)[0]
    rows = cotangents.lumped_cotangents(logits, torch.tensor(7), keep=12)[:-1]
    share = float(rows.square().sum() / torch.trace(fisher(logits)))
    kept = float(torch.softmax(logits, -1).topk(12).values.sum())
    assert 0.5 * kept <= share <= 1.0


def test_drawn_rows_have_the_fisher_matrix_as_their_mean() -> None:
    """Of the sum over tokens: the blocks between tokens vanish in the mean. Six standard errors."""
    logits, samples = cases.gaussian(2, 4, seed=6), 20000
    rows = cotangents.monte_carlo_cotangents(logits, torch.tensor([1, 2]), samples=samples, seed=3)[:-1]
    flat = rows.reshape(samples, 8)
    exact = torch.block_diag(*(fisher(row) for row in logits))
    draws = samples * flat.unsqueeze(1) * flat.unsqueeze(2)
    error = (draws.mean(0) - exact).abs()
    assert bool((error <= tolerance.LAMBDA * draws.std(0) / samples**0.5).all())


def test_draws_follow_their_seed_and_leave_the_global_generator_alone() -> None:
    logits, target = cases.gaussian(3, 4, seed=6), torch.tensor([1, -100, 2])
    before = torch.get_rng_state()
    first = cotangents.monte_carlo_cotangents(logits, target, samples=5, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert checks.same_bits(first, cotangents.monte_carlo_cotangents(logits, target, samples=5, seed=3))
    assert not checks.same_bits(first, cotangents.monte_carlo_cotangents(logits, target, samples=5, seed=4))
    assert not first[:, 1].any() and first[:, 0].any()


def test_labels_are_drawn_only_where_they_count() -> None:
    """Neither the number nor the logits of other tokens move a draw, and none of them gets a row."""
    logits, target = cases.gaussian(3, 4, seed=6), torch.tensor([1, -100, 2])
    logits[1] = torch.nan
    rows = cotangents.monte_carlo_cotangents(logits, target, samples=5, seed=3)
    alone = cotangents.monte_carlo_cotangents(logits[[0, 2]], target[[0, 2]], samples=5, seed=3)
    assert checks.same_bits(rows[:, [0, 2]], alone) and not rows[:, 1].any()
    assert not cotangents.monte_carlo_cotangents(logits, torch.full((3,), -1), samples=5, seed=3).any()


def test_refusals() -> None:
    logits, target = torch.zeros(3, 4), torch.tensor([0, 1, 4])
    with pytest.raises(ValueError, match="softmax_cotangents: `target` must be below 4 and >= 0, got"):
        cotangents.softmax_cotangents(logits, target)
    with pytest.raises(ValueError, match=r"softmax_cotangents: `target` must be \[3\] for `logits` of shape \[3, 4\]"):
        cotangents.softmax_cotangents(logits, target[:2])
    with pytest.raises(
        ValueError, match=r"lumped_cotangents: `logits` must be \[c\] or \[b, c\], got shape \[2, 3, 4\]"
    ):
        cotangents.lumped_cotangents(torch.zeros(2, 3, 4), torch.zeros(2, 3).long(), keep=2)
    with pytest.raises(ValueError, match="lumped_cotangents: `keep` must be >= 1, got 0"):
        cotangents.lumped_cotangents(logits, target.clamp(max=3), keep=0)
    with pytest.raises(ValueError, match="monte_carlo_cotangents: `samples` must be >= 1, got 0"):
        cotangents.monte_carlo_cotangents(logits, target.clamp(max=3), samples=0, seed=0)
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="monte_carlo_cotangents: `logits` must be finite at every token that"):
            cotangents.monte_carlo_cotangents(logits + bad, target.clamp(max=3), samples=1, seed=0)

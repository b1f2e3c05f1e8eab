"""Invariants of a Kalman step with a diagonal covariance."""

from __future__ import annotations

import math
from typing import Any

import kalman_cases
import lowrank_core as lc
import torch
from hypothesis import given
from hypothesis import strategies as st
from kalman_cases import Filter
from lowrank_core.reference import kalman_diag as reference
from testing import cases, tolerance
from torch import Tensor

U = tolerance.UNIT[torch.float64]
sizes = st.tuples(st.integers(1, 7), st.integers(1, 20), st.integers(0, 2**16))


@st.composite
def filters(draw: Any) -> Filter:
    m, n, seed = draw(sizes)
    return kalman_cases.make(m, n, seed=seed, p=draw(st.sampled_from((1e-3, 0.1, 1.0))))


def slack(f: Filter) -> float:
    """Relative error of a step, as `kalman_cases.bounds`, for quantities that gather several of them."""
    m, n = f.jac.shape
    return 4 * (m + 1) * tolerance.gamma(n + m + 2, torch.float64) * kalman_cases.condition(f)


def close(x: Tensor, y: Tensor, relative: float) -> bool:
    """Apart by `relative` of the largest entry of either."""
    if x.numel() == 0:
        return x.shape == y.shape
    return bool((x - y).abs().max() <= relative * max(float(x.abs().max()), float(y.abs().max()), 0.0) + U * U)


def noise(m: int, seed: int) -> Tensor:
    root = cases.gaussian(m, m, seed=seed)
    return torch.eye(m, dtype=torch.float64) + root @ root.mT


def whitened(h: Tensor, e: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    root = torch.linalg.cholesky(r)
    jac = torch.linalg.solve_triangular(root, h, upper=False)
    return jac, jac.mT @ torch.linalg.solve_triangular(root, e.unsqueeze(1), upper=False).squeeze(1)


@given(sizes)
def test_one_step_is_that_of_the_dense_filter(size: tuple[int, int, int]) -> None:
    """theta⁺ and diag(P⁺), for any H, R, m and n, from a diagonal P; the gain is the dense one."""
    m, n, seed = size
    f, e, r = kalman_cases.make(m, n, seed=seed), cases.gaussian(1, m, seed=seed)[0], noise(m, seed + 2)
    jac, score = whitened(f.jac, e, r)
    zero = torch.zeros_like(f.theta)
    theta, cov = reference.dense_ekf(zero, torch.diag(f.p), f.jac, e, r)
    found = lc.kalman_diag_step(zero, f.p, jac, score)
    relative = slack(f._replace(jac=jac)) * float(torch.linalg.cond(r))
    assert close(found.theta, theta, relative) and close(found.p, cov.diagonal(), relative)
    assert close(lc.kalman_diag_gain(f.p, f.jac, r) @ e, theta, relative)


@given(st.integers(0, 2**16))
def test_many_steps_are_dense_where_columns_are_orthogonal(seed: int) -> None:
    """One parameter for each output, as in one-hot regression: p = 1 / (1/p + Σ |m_i|²)."""
    n, steps = 6, 20
    theta, p = cases.gaussian(1, n, seed=seed)[0], torch.full((n,), 0.3, dtype=torch.float64)
    dense, cov, precision = theta.clone(), torch.diag(p), 1 / p
    jacs = torch.diag_embed(cases.gaussian(steps, n, seed=seed + 1))
    for jac, e in zip(jacs, cases.gaussian(steps, n, seed=seed + 2), strict=True):
        theta, p = lc.kalman_diag_step(theta, p, jac, jac.mT @ e)
        dense, cov = reference.dense_ekf(dense, cov, jac, e, 1.0)
        precision = precision + jac.square().sum(0)
    grown = steps * 8 * (n + 1) * tolerance.gamma(n, torch.float64) * 10
    assert close(theta, dense, grown) and close(p, cov.diagonal(), grown) and close(p, 1 / precision, grown)


@given(filters())
def test_variances_shrink_within_their_bounds(f: Filter) -> None:
    least = 1 / (1 / f.p + f.jac.square().sum(0))
    after = lc.kalman_diag_step(*f).p
    assert bool((after > 0).all()) and bool((after <= f.p).all())
    assert bool((after >= least * (1 - slack(f))).all())


@given(filters(), st.integers(0, 19))
def test_an_unobserved_parameter_keeps_its_variance(f: Filter, which: int) -> None:
    column = which % f.p.numel()
    f.jac[:, column] = 0.0
    f.score[column] = 0.0  # the score Mᵀẽ of such a parameter
    after = lc.kalman_diag_step(*f)
    assert after.p[column] == f.p[column] and after.theta[column] == f.theta[column]


@given(filters())
def test_leverages_sum_to_what_the_outputs_explain(f: Filter) -> None:
    s = torch.eye(f.jac.shape[0], dtype=torch.float64) + (f.jac * f.p) @ f.jac.mT
    after = lc.kalman_diag_step(*f).p
    leverage = 1 - after / f.p
    total = f.jac.shape[0] - float(torch.trace(torch.linalg.inv(s)))
    assert abs(float(leverage.sum()) - total) <= slack(f) * f.p.numel()
    assert float(leverage.sum()) <= min(f.jac.shape) + slack(f) * f.p.numel()
    # Hadamard's inequality.
    assert float(torch.log(f.p / after).sum()) <= float(torch.logdet(s)) + slack(f) * f.p.numel()


@given(st.integers(1, 7), st.integers(0, 2**16))
def test_hadamards_inequality_is_an_equality_for_orthogonal_columns(n: int, seed: int) -> None:
    f = kalman_cases.make(n + 2, n, seed=seed)
    f = f._replace(jac=cases.orthonormal(n + 2, n, seed) * cases.gaussian(1, n, seed=seed + 1))
    s = torch.eye(n + 2, dtype=torch.float64) + (f.jac * f.p) @ f.jac.mT
    explained = float(torch.log(f.p / lc.kalman_diag_step(*f).p).sum())
    assert abs(explained - float(torch.logdet(s))) <= slack(f) * (1 + n)


def test_orthonormal_rows_do_not_make_many_steps_dense() -> None:
    """One row (1, 1) / √2 and P = R = 1: the dense covariance gets -1/4 off its diagonal, and then moves both."""
    row, one = torch.full((1, 2), 0.5**0.5, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    zero, p = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    theta, p = lc.kalman_diag_step(zero, p, row, row[0])
    dense, cov = reference.dense_ekf(zero, torch.eye(2, dtype=torch.float64), row, one, 1.0)
    assert close(theta, dense, 8 * U) and close(p, cov.diagonal(), 8 * U)
    assert close(cov, torch.tensor([[0.75, -0.25], [-0.25, 0.75]], dtype=torch.float64), 8 * U)
    second = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    moved = lc.kalman_diag_step(zero, p, second, second[0]).theta
    exact, _ = reference.dense_ekf(zero, cov, second, one, 1.0)
    assert moved[1] == 0.0 and close(exact, torch.tensor([0.75, -0.25], dtype=torch.float64) / 1.75, 8 * U)


@given(filters())
def test_the_predicted_residual_is_the_noise_share(f: Filter) -> None:
    """ẽ - M delta = S⁻¹ ẽ in residual form."""
    e = cases.gaussian(1, f.jac.shape[0], seed=5)[0]
    delta = lc.kalman_diag_step(torch.zeros_like(f.theta), f.p, f.jac, f.jac.mT @ e).theta
    s = torch.eye(e.numel(), dtype=torch.float64) + (f.jac * f.p) @ f.jac.mT
    left = e - f.jac @ delta
    allowed = slack(f) * float(e.norm() + (f.jac.abs() @ delta.abs()).max())
    assert bool(((left - torch.linalg.solve(s, e)).abs() <= allowed).all())


def test_without_noise_the_step_interpolates_and_with_much_it_is_the_gradient() -> None:
    f, e = kalman_cases.make(4, 30, p=1.0), cases.gaussian(1, 4, seed=3)[0]
    h = f.jac
    for r in (1e-10, 1e10):
        jac, score = whitened(h, e, r * torch.eye(4, dtype=torch.float64))
        delta = lc.kalman_diag_step(torch.zeros(30, dtype=torch.float64), f.p, jac, score).theta
        weighted = (h * f.p) @ h.mT
        if r < 1:
            share = r / float(torch.linalg.eigvalsh(weighted)[0])
            assert bool(((h @ delta - e).abs() <= 2 * (share + slack(f._replace(jac=jac))) * e.norm()).all())
        else:
            share = float(torch.linalg.eigvalsh(weighted)[-1]) / r
            assert close(delta, f.p * (h.mT @ e) / r, 2 * share * math.sqrt(30))
    interpolated = lc.kalman_diag_gain(f.p, h, 0.0)
    assert close(h @ interpolated, torch.eye(4, dtype=torch.float64), slack(f) * 100)


@given(filters(), st.sampled_from((2.0**-20, 0.5, 2.0**12)))
def test_scaling_variances_and_noise(f: Filter, c: float) -> None:
    """(p, R) -> (c p, c R): delta is the same and p⁺ scales; powers of two to the last bits of the roots."""
    first = lc.kalman_diag_step(torch.zeros_like(f.theta), *f[1:])
    scaled = lc.kalman_diag_step(torch.zeros_like(f.theta), c * f.p, f.jac / math.sqrt(c), f.score / c)
    assert close(first.theta, scaled.theta, slack(f)) and close(c * first.p, scaled.p, slack(f))


@given(sizes, st.sampled_from((2.0**-20, 0.3, 2.0**12)))
def test_scaling_outputs_and_their_noise(size: tuple[int, int, int], c: float) -> None:
    """(H, e, R) -> (c H, c e, c² R) changes nothing, whitened or not."""
    m, n, seed = size
    f, e, r = kalman_cases.make(m, n, seed=seed), cases.gaussian(1, m, seed=seed)[0], noise(m, seed + 2)
    zero = torch.zeros_like(f.theta)
    one = lc.kalman_diag_step(zero, f.p, *whitened(f.jac, e, r))
    two = lc.kalman_diag_step(zero, f.p, *whitened(c * f.jac, c * e, c * c * r))
    relative = slack(f) * float(torch.linalg.cond(r))
    assert close(one.theta, two.theta, relative) and close(one.p, two.p, relative)
    gain = lc.kalman_diag_gain(f.p, c * f.jac, c * c * r) @ (c * e)
    assert close(lc.kalman_diag_gain(f.p, f.jac, r) @ e, gain, relative)


@given(filters())
def test_a_diagonal_change_of_parameters(f: Filter) -> None:
    """theta' = D theta, p' = D² p, H' = H D⁻¹, g' = g D⁻¹: delta' = D delta, p⁺' = D² p⁺."""
    d = torch.exp(cases.gaussian(1, f.p.numel(), seed=6)[0])
    first = lc.kalman_diag_step(torch.zeros_like(f.theta), *f[1:])
    other = lc.kalman_diag_step(torch.zeros_like(f.theta), d * d * f.p, f.jac / d, f.score / d)
    assert close(d * first.theta, other.theta, slack(f)) and close(d * d * first.p, other.p, slack(f))


@given(sizes)
def test_mixing_the_outputs_changes_nothing(size: tuple[int, int, int]) -> None:
    """(N H, N e, N R Nᵀ); and whitened equals unwhitened."""
    m, n, seed = size
    f, e, r = kalman_cases.make(m, n, seed=seed), cases.gaussian(1, m, seed=seed)[0], noise(m, seed + 2)
    mix = cases.gaussian(m, m, seed=seed + 9) + 3 * math.sqrt(m) * torch.eye(m, dtype=torch.float64)
    zero = torch.zeros_like(f.theta)
    one = lc.kalman_diag_step(zero, f.p, *whitened(f.jac, e, r))
    two = lc.kalman_diag_step(zero, f.p, *whitened(mix @ f.jac, mix @ e, mix @ r @ mix.mT))
    relative = slack(f) * float(torch.linalg.cond(r) * torch.linalg.cond(mix) ** 2)
    assert close(one.theta, two.theta, relative) and close(one.p, two.p, relative)
    assert close(one.theta, lc.kalman_diag_gain(f.p, f.jac, r) @ e, relative)


@given(filters(), st.randoms(use_true_random=False))
def test_the_order_of_parameters_and_outputs_does_not_matter(f: Filter, random: Any) -> None:
    columns, rows = list(range(f.jac.shape[1])), list(range(f.jac.shape[0]))
    random.shuffle(columns)
    random.shuffle(rows)
    first = lc.kalman_diag_step(*f)
    other = lc.kalman_diag_step(f.theta[columns], f.p[columns], f.jac[rows][:, columns], f.score[columns])
    shift = slack(f) * 10
    assert close(first.theta[columns], other.theta, shift) and close(first.p[columns], other.p, shift)


def test_one_parameter_is_recursive_least_squares() -> None:
    """After k steps 1/p = 1/p0 + Σ x²/r and theta = p (Σ x y / r + theta0 / p0)."""
    x, y = cases.gaussian(2, 200, seed=4)
    r, p0, theta0 = 0.25, 2.0, 0.7
    theta, p = torch.tensor([[theta0], [p0]], dtype=torch.float64)
    for k in range(200):
        jac = x[k].view(1, 1) / math.sqrt(r)
        error = (y[k] - x[k] * theta) / math.sqrt(r)
        assert lc.kalman_diag_step_(theta, p, jac, jac[0] * error)
    precision = 1 / p0 + float(x.square().sum()) / r
    grown = 200 * 8 * tolerance.gamma(1, torch.float64)
    assert abs(float(p) * precision - 1) <= grown
    exact = (float(x @ y) / r + theta0 / p0) / precision
    assert abs(float(theta) - exact) <= grown * (abs(exact) + 1)


def test_one_output_and_equal_variances_are_normalized_lms() -> None:
    f = kalman_cases.make(1, 40)._replace(p=torch.full((40,), 0.3, dtype=torch.float64))
    e = 1.7
    h = f.jac[0]
    step = lc.kalman_diag_step(f.theta, f.p, f.jac, h * e).theta - f.theta
    assert close(step, 0.3 * e * h / (1 + 0.3 * h.square().sum()), slack(f) * 10)


@given(filters())
def test_no_error_moves_nothing_but_the_variances(f: Filter) -> None:
    after = lc.kalman_diag_step(f.theta, f.p, f.jac, torch.zeros_like(f.score))
    assert torch.equal(after.theta, f.theta) and bool((after.p < f.p).all())


@given(filters())
def test_without_a_jacobian_nothing_changes(f: Filter) -> None:
    after = lc.kalman_diag_step(f.theta, f.p, torch.zeros_like(f.jac), torch.zeros_like(f.score))
    assert torch.equal(after.theta, f.theta) and torch.equal(after.p, f.p)


@given(filters(), st.sampled_from((0.0, -1.0, 0.25, 3.0)))
def test_the_rate_scales_the_change_of_theta_alone(f: Filter, lr: float) -> None:
    zero = torch.zeros_like(f.theta)
    full, part = lc.kalman_diag_step(zero, *f[1:]), lc.kalman_diag_step(zero, *f[1:], lr=lr)
    assert torch.equal(part.p, full.p) and close(part.theta, lr * full.theta, U)

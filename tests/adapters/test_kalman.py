"""Whitening, deflation, estimators of the noise, drift and forgetting."""

from __future__ import annotations

import math

import lowrank_core as lc
import pytest
import torch
from lowrank_core.adapters import kalman, noise
from testing import cases, checks, tolerance
from torch import Tensor

M, N = 4, 30
GAMMA = 40 * tolerance.gamma(M + N, torch.float64)


def close(x: Tensor, y: Tensor, relative: float = GAMMA) -> bool:
    return bool((x - y).abs().max() <= relative * max(1.0, float(y.abs().max())))


def spd(seed: int = 0) -> Tensor:
    root = cases.gaussian(M, M, seed=seed)
    return torch.eye(M, dtype=torch.float64) + root @ root.mT


def model() -> tuple[Tensor, Tensor, Tensor]:
    """H, e and p."""
    p = torch.exp(cases.gaussian(1, N, seed=3)[0])
    return cases.gaussian(M, N, seed=1), cases.gaussian(1, M, seed=2)[0], p


@pytest.mark.parametrize("kind", ["number", "diagonal", "matrix"])
def test_whitening(kind: str) -> None:
    """MᵀM = Hᵀ R⁻¹ H, and the score is Hᵀ R⁻¹ e; lists and matrices of parameters alike."""
    h, e, _ = model()
    r = {"number": 0.3, "diagonal": torch.linspace(0.5, 2, M).double(), "matrix": spd()}[kind]
    jac, score = kalman.whiten(h, e, r)
    solved = torch.linalg.solve(kalman.noise_matrix(r, e), torch.cat([h, e.unsqueeze(1)], 1))
    assert close(jac.mT @ jac, h.mT @ solved[:, :N]) and close(score, h.mT @ solved[:, N])
    parts = kalman.whiten([h[:, :12].view(M, 3, 4), h[:, 12:]], e, r)
    assert checks.same_bits([rows.reshape(M, -1) for rows in parts.jac], [jac[:, :12], jac[:, 12:]]) or all(
        close(rows.reshape(M, -1), want) for rows, want in zip(parts.jac, (jac[:, :12], jac[:, 12:]), strict=True)
    )
    assert parts.jac[0].shape == (M, 3, 4) and parts.score[0].shape == (3, 4)
    with pytest.raises(ValueError, match="whiten: `r` must be positive definite"):
        kalman.whiten(h, e, -1.0)


def test_damped_softmax() -> None:
    """R = Λ + εI on the probabilities; it tends to the form without an inverse."""
    j, logits, target = cases.gaussian(M, N, seed=1), cases.gaussian(1, M, seed=4)[0], torch.tensor(1)
    y = torch.softmax(logits, -1)
    fisher, error = torch.diag(y) - torch.outer(y, y), torch.nn.functional.one_hot(target, M).double() - y
    damped = kalman.softmax_observation(j, logits, target, epsilon=0.1)
    plain = kalman.whiten(fisher @ j, error, fisher + 0.1 * torch.eye(M, dtype=torch.float64))
    assert close(damped.jac.mT @ damped.jac, plain.jac.mT @ plain.jac) and close(damped.score, plain.score)
    exact, near = (
        kalman.softmax_observation(j, logits, target),
        kalman.softmax_observation(j, logits, target, epsilon=1e-9),
    )
    share = 1e-9 / float(torch.linalg.eigvalsh(fisher)[1])
    assert close(near.score, exact.score, 4 * share * N) and close(
        near.jac.mT @ near.jac, exact.jac.mT @ exact.jac, 4 * share * N
    )
    # A confidently wrong prediction: Λ is nearly 0, and ε bounds what is passed on.
    wrong = kalman.softmax_observation(j, torch.tensor([40.0, 0, 0, 0]).double(), torch.tensor(1), epsilon=0.1)
    assert float(wrong.score.norm()) < float(
        kalman.softmax_observation(j, torch.tensor([40.0, 0, 0, 0]).double(), torch.tensor(1)).score.norm()
    )


def test_deflation_changes_nothing() -> None:
    """Where 1ᵀH = 0 and 1ᵀe = 0; and an estimated R without it runs into a singular S."""
    h, e, p = model()
    h, e = h - h.mean(0), e - e.mean()
    a = kalman.predicted_covariance(h, p)
    centre = torch.eye(M, dtype=torch.float64) - 1 / M
    r = centre @ spd() @ centre + 1e-3 / M  # small along 1
    plain = lc.kalman_diag_gain(p, h, r) @ e
    deflated = lc.kalman_diag_gain(p, h, kalman.deflate(r, a)) @ e
    assert close(plain, deflated, GAMMA * float(torch.linalg.cond(a + r)))
    policy = noise.noise_policy("ema_pre", M, beta=0.5)
    for _ in range(2000):
        r = policy.before(e, a)
    assert float(torch.linalg.eigvalsh(a + r)[0]) <= GAMMA * float(a.norm())
    with pytest.raises(ValueError, match="positive definite"):
        lc.kalman_diag_gain(p, h, r)
    assert close(h @ lc.kalman_diag_gain(p, h, kalman.deflate(r, a)) @ e, a @ torch.linalg.pinv(a + r) @ e, 100 * GAMMA)


def test_the_covariance_of_lists_is_summed() -> None:
    h, _, p = model()
    whole = kalman.predicted_covariance(h, p)
    parts = kalman.predicted_covariance([h[:, :12].view(M, 3, 4), h[:, 12:]], [p[:12].view(3, 4), p[12:]])
    assert close(parts, whole) and close(whole, h @ torch.diag(p) @ h.mT)
    with pytest.raises(ValueError, match="predicted_covariance: `h` must hold at least one tensor"):
        kalman.predicted_covariance([], [])


def test_divergence_is_what_the_limit_bounds() -> None:
    h, e, p = model()
    jac, score = kalman.whiten(h, 10 * e, 0.1)
    zero = torch.zeros(N, dtype=torch.float64)
    delta = lc.kalman_diag_step(zero, p, jac, score, kl_limit=0.5).theta
    assert close(torch.tensor(kalman.divergence(jac, delta)), torch.tensor(0.5))
    parts = [jac[:, :10], jac[:, 10:]], [delta[:10], delta[10:]]
    assert close(torch.tensor(kalman.divergence(*parts)), torch.tensor(0.5))


# ---- the noise -----------------------------------------------------------------------------------------------------


def simulate(name: str, steps: int = 4000) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of R over errors of a correct model of covariance A + R, its R, and A."""
    generator = cases.generator(11)
    h, _, p = model()
    a, r = kalman.predicted_covariance(h, 0.1 * p), spd(5)
    root = torch.linalg.cholesky(a + r)
    policy = noise.noise_policy(name, M, beta=0.0)
    total = torch.zeros(M, M, dtype=torch.float64)
    gain = lc.kalman_diag_gain(0.1 * p, h, r)
    after = a - a @ torch.linalg.solve(a + r, a)  # of the dense filter: H P⁺ Hᵀ
    for _ in range(steps):
        e = root @ torch.from_numpy(generator.standard_normal(M))
        policy.r = r.clone() if name == "ema_post" else policy.r
        policy.before(e, a)
        policy.after(e, a, after)
        total += policy.r / steps
    assert gain.shape == (N, M)
    return total, r, a


@pytest.mark.parametrize("name", ["ema_pre", "ema_post", "innovation"])
def test_what_an_estimator_expects_under_a_correct_model(name: str) -> None:
    """R + 2A before the step, R after it or from the innovation; six standard errors of a Wishart matrix."""
    mean, r, a = simulate(name)
    expected = r + 2 * a if name == "ema_pre" else r
    scale = torch.linalg.eigvalsh(a + r)[-1]
    assert bool((mean - expected).abs().max() <= tolerance.LAMBDA * math.sqrt(2 / 4000) * scale)


def test_running_means() -> None:
    h, e, p = model()
    a = kalman.predicted_covariance(h, p)
    policy = noise.noise_policy("ema_pre", M, beta=0.9, r0=2.0)
    r = policy.before(e, a)
    assert close(r, 1.8 * torch.eye(M, dtype=torch.float64) + 0.1 * (torch.outer(e, e) + a))
    post = noise.noise_policy("ema_post", M, beta=0.9)
    assert torch.equal(post.before(e, a), torch.eye(M, dtype=torch.float64))
    post.after(e, a, 0.5 * a)
    left = torch.linalg.solve(a + torch.eye(M, dtype=torch.float64), e)
    assert close(post.r, 0.9 * torch.eye(M, dtype=torch.float64) + 0.1 * (torch.outer(left, left) + 0.5 * a))


def test_an_indefinite_innovation_is_raised_where_it_is_used() -> None:
    h, _, p = model()
    policy = noise.noise_policy("innovation", M, beta=0.0, floor=1e-3)
    used = policy.before(torch.zeros(M), kalman.predicted_covariance(h, p))
    assert float(torch.linalg.eigvalsh(policy.r)[0]) < 0
    assert float(torch.linalg.eigvalsh(used)[0]) >= policy.floor * (1 - GAMMA) - GAMMA * float(policy.r.norm())


def test_scalar_and_fixed_and_ggn() -> None:
    errors = cases.gaussian(50, M, seed=8)
    scalar = noise.noise_policy("scalar", M)
    for e in errors:
        r = scalar.before(e, torch.zeros(M, M))
    assert close(r, errors.square().mean() * torch.eye(M, dtype=torch.float64))
    floor = noise.noise_policy("scalar", M, floor=0.5).before(torch.zeros(M), torch.zeros(M, M))
    assert torch.equal(floor, 0.5 * torch.eye(M, dtype=torch.float64))
    assert torch.equal(noise.noise_policy("fixed", M, r=3.0).before(errors[0], errors), 3 * torch.eye(M).double())
    y = torch.softmax(errors[0], 0)
    for target in range(M):
        e = torch.nn.functional.one_hot(torch.tensor(target), M) - y
        found = noise.noise_policy("ggn", M, epsilon=0.25).before(e, torch.zeros(M, M))
        assert close(found, torch.diag(y) - torch.outer(y, y) + 0.25 * torch.eye(M, dtype=torch.float64))


@pytest.mark.parametrize("name", ["ema_pre", "ema_post", "innovation", "fixed"])
def test_an_estimate_goes_to_the_device_of_the_outputs(name: str) -> None:
    """The device meta stands for one that is not the host."""
    policy = noise.noise_policy(name, 3)
    for _ in range(2):  # the second time with what is kept from the first
        e, a = torch.empty(3, device="meta"), torch.empty(3, 3, dtype=torch.float64, device="meta")
        assert policy.before(e, a).device.type == "meta"
        policy.after(e, a, a)
        assert policy.r.device.type == "meta"
        policy.load_state_dict({"r": torch.eye(3, dtype=torch.float64)})  # as a file gives it


@pytest.mark.parametrize("name", noise.POLICIES)
def test_a_saved_estimator_continues_with_the_same_bits(name: str) -> None:
    h, e, p = model()
    a = kalman.predicted_covariance(h, p)

    def run(policy: noise.NoisePolicy, steps: int) -> list[Tensor]:
        found = []
        for k in range(steps):
            found.append(policy.before(e / (k + 1), a).clone())
            policy.after(e / (k + 1), a, 0.5 * a)
        return found

    first, second = noise.noise_policy(name, M), noise.noise_policy(name, M)
    run(first, 3)
    second.load_state_dict(first.state_dict())
    assert checks.same_bits(run(first, 3), run(second, 3))


# ---- drift and forgetting ------------------------------------------------------------------------------------------


def test_variances_between_steps() -> None:
    _, _, p = model()
    assert close(kalman.predict_variance(p, q=0.1, alpha=0.5, gamma=0.9), 1.5 * (0.81 * p + 0.1))
    assert checks.same_bits(kalman.predict_variance(p), p)
    assert close(kalman.fade(p, 0.98), p / 0.98)
    factor = kalman.FADING_START
    for _ in range(3):
        factor = kalman.next_fading(factor)
    assert abs(factor - (1 - 0.02 * kalman.FADING_RATE**3)) <= GAMMA


def test_the_steady_state_under_process_noise() -> None:
    """p⁺ = (-q + √(q² + 4 q R / h²)) / 2 for one parameter."""
    q, r, h = 0.01, 0.5, 1.3
    theta, p = torch.zeros(2, 1, dtype=torch.float64)
    p = p + 1.0
    for _ in range(1000):
        theta, p = lc.kalman_diag_step(
            theta, kalman.predict_variance(p, q=q), torch.full((1, 1), h / math.sqrt(r)).double(), 0 * theta
        )
    assert close(
        p, torch.tensor([(-q + math.sqrt(q * q + 4 * q * r / h**2)) / 2]).double(), 10 * tolerance.UNIT[torch.float32]
    )


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"noise_policy: `name` must be one of ema_pre, .*, got 'ema'"):
        noise.noise_policy("ema", M)
    for name, option in (("ema_pre", {"beta": 1.0}), ("ema_post", {"r0": 0.0}), ("scalar", {"floor": 0.0})):
        with pytest.raises(ValueError, match=f"noise_policy: `{next(iter(option))}` must be"):
            noise.noise_policy(name, M, **option)
    for name, option in (("fixed", {"r": -1.0}), ("ggn", {"epsilon": -1.0}), ("innovation", {"floor": -1.0})):
        with pytest.raises(ValueError, match=f"noise_policy: `{next(iter(option))}` must be"):
            noise.noise_policy(name, M, **option)
    with pytest.raises(TypeError, match=r"noise_policy: options of .fixed. must be among r, got beta; leave it out"):
        noise.noise_policy("fixed", M, beta=0.5)
    p = torch.ones(3)
    with pytest.raises(ValueError, match="predict_variance: `q` and `alpha` must be >= 0"):
        kalman.predict_variance(p, q=-1.0)
    with pytest.raises(ValueError, match=r"fade: `factor` must be in \(0, 1\], got 0.0"):
        kalman.fade(p, 0.0)

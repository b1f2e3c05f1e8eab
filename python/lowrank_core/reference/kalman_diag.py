"""A diagonal Kalman gain and step, dense and in float64: the extended Kalman filter as textbooks have it."""

from __future__ import annotations

import torch
from torch import Tensor


def noise_matrix(r: float | Tensor, m: int) -> Tensor:
    """R [m, m] from a number, a diagonal or a matrix, of which the symmetric part counts."""
    r = torch.as_tensor(r, dtype=torch.float64)
    if r.ndim == 2:
        return 0.5 * (r + r.mT)
    return torch.diag(r.expand(m))


def kalman_diag_gain(p: Tensor, h: Tensor, r: float | Tensor) -> Tensor:
    """K = diag(p) Hᵀ (H diag(p) Hᵀ + R)⁻¹, [n, m]."""
    p, h = p.double(), h.double()
    gain: Tensor = torch.linalg.solve((h * p) @ h.mT + noise_matrix(r, h.shape[0]), h * p).mT
    return gain


def kalman_diag_step(
    theta: Tensor, p: Tensor, jac: Tensor, score: Tensor, *, lr: float = 1.0, kl_limit: float | None = None
) -> tuple[Tensor, Tensor]:
    """theta and p after a step: delta = (diag(1/p) + MᵀM)⁻¹ g by its m x m form, p (1 - s) with the leverage s.

    1 - s_i is taken from S without parameter i, p_i (1 - s_i) = p_i / (1 + p_i M_iᵀ S_-i⁻¹ M_i), which cancels nothing.
    """
    theta, p, jac, score = theta.double(), p.double(), jac.double(), score.double()
    m, n = jac.shape
    if m == 0:
        return theta.clone(), p.clone()
    s = torch.eye(m, dtype=torch.float64) + (jac * p) @ jac.mT
    w = torch.linalg.solve(s, jac @ (p * score))
    delta = p * (score - jac.mT @ w)
    rate = lr
    if kl_limit is not None:
        divergence = 0.5 * float((lr * jac @ delta).square().sum())
        rate = lr * (kl_limit / divergence) ** 0.5 if divergence > kl_limit else lr
    new_p = p.clone()
    for i in range(n):
        others = torch.ones(n, dtype=torch.bool)
        others[i] = False
        without = torch.eye(m, dtype=torch.float64) + (jac[:, others] * p[others]) @ jac[:, others].mT
        new_p[i] = p[i] / (1 + p[i] * jac[:, i] @ torch.linalg.solve(without, jac[:, i]))
    return theta + rate * delta, new_p


def dense_ekf(theta: Tensor, cov: Tensor, h: Tensor, e: Tensor, r: float | Tensor) -> tuple[Tensor, Tensor]:
    """One update of the full extended Kalman filter: theta and the covariance [n, n], in Joseph's form."""
    noise = noise_matrix(r, h.shape[0])
    gain = torch.linalg.solve(h @ cov @ h.mT + noise, h @ cov).mT
    rest = torch.eye(cov.shape[0], dtype=torch.float64) - gain @ h
    return theta + gain @ e, rest @ cov @ rest.mT + gain @ noise @ gain.mT

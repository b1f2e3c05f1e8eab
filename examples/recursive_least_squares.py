"""Streaming linear regression by Kalman steps, against the closed form.

Where each step observes parameters that no other step of the same output mixes with them, a diagonal covariance is
exact: here a sensor is read at a time, each with a slope of its own, and the filter ends where least squares with the
same prior ends. With mixed inputs it is an approximation, and the second table says how good.
"""

from __future__ import annotations

import lowrank_core as lc
import torch
from torch import Tensor


def stream(theta: Tensor, p: Tensor, xs: Tensor, ys: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """One pass over (x, y) with y = x · theta + noise, each seen once."""
    theta, p = theta.clone(), p.clone()
    for x, y in zip(xs, ys, strict=True):
        jac = (x / noise**0.5).unsqueeze(0)  # whitened: divided by the standard deviation of the noise
        residual = (y - x @ theta) / noise**0.5
        lc.kalman_diag_step_(theta, p, jac, jac[0] * residual)
    return theta, p


def closed_form(theta: Tensor, p: Tensor, xs: Tensor, ys: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Ridge regression: the mean and the variances of the posterior."""
    precision = torch.diag(1 / p) + xs.T @ xs / noise
    mean = torch.linalg.solve(precision, xs.T @ ys / noise + theta / p)
    return mean, torch.linalg.inv(precision).diagonal()


def main() -> None:
    torch.manual_seed(0)
    n, noise = 8, 0.09
    truth = torch.randn(n, dtype=torch.float64)
    prior = torch.zeros(n, dtype=torch.float64), torch.full((n,), 4.0, dtype=torch.float64)

    print("one sensor at a time: the filter and least squares")
    for count in (8, 80, 800):
        xs = torch.nn.functional.one_hot(torch.arange(count) % n, n).double() * torch.randn(count, 1).double()
        ys = xs @ truth + noise**0.5 * torch.randn(count).double()
        (theta, p), (mean, variance) = (f(*prior, xs, ys, noise) for f in (stream, closed_form))
        apart = float((theta - mean).abs().max()), float((p / variance - 1).abs().max())
        print(f"{count:5} readings: theta apart by {apart[0]:.1e}, variances by {apart[1]:.1e}")
        assert max(apart) < 1e-9

    print("\nmixed inputs: a diagonal covariance is an approximation")
    print("readings  error of the filter  of least squares")
    for count in (80, 800):
        xs = torch.randn(count, n).double()
        ys = xs @ truth + noise**0.5 * torch.randn(count).double()
        errors = [float((f(*prior, xs, ys, noise)[0] - truth).norm()) for f in (stream, closed_form)]
        print(f"{count:8}  {errors[0]:19.4f}  {errors[1]:16.4f}")


if __name__ == "__main__":
    main()

"""Estimators of the observation noise R [m, m], float64, of a Kalman filter.

`before` gives the R that a step is taken with; `after` tells the estimator how the step went. e is the error target
minus output, A = H diag(p) Hᵀ before the step (`predicted_covariance`), A⁺ the same with the variances after it. R is a
constant: e and A are read detached, and no graph grows from step to step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class NoisePolicy:
    """The interface, and what the running means share: R, started at r0 I, and its weight beta.

    Example:
      >>> import torch
      >>> from lowrank_core.adapters.noise import noise_policy
      >>> policy = noise_policy("ema_pre", 2, beta=0.5)
      >>> policy.before(torch.tensor([2.0, 0.0]), torch.zeros(2, 2)).tolist()
      [[2.5, 0.0], [0.0, 0.5]]
    """

    def __init__(self, m: int, *, beta: float = 0.95, r0: float = 1.0) -> None:
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"noise_policy: `beta` must be in [0, 1), got {beta!r}")
        if not r0 > 0.0:
            raise ValueError(f"noise_policy: `r0` must be > 0, got {r0!r}")
        self.beta = beta
        self.r = r0 * torch.eye(m, dtype=torch.float64)

    def before(self, e: Tensor, a: Tensor) -> Tensor:
        """R for this step, on the device of `e`."""
        self.r = self.r.to(e.device)
        return self.r

    def after(self, e: Tensor, a: Tensor, a_after: Tensor) -> None:
        """Learns from a step that was taken."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers under flat keys."""
        return {"r": self.r.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.r = state["r"].clone()

    def _mean(self, found: Tensor) -> None:
        self.r = self.beta * self.r.to(found.device) + (1.0 - self.beta) * found.detach()


class EmaPre(NoisePolicy):
    """R <- beta R + (1 - beta)(eeᵀ + A), before the step. Positive definite; its mean is R + 2 A, which damps."""

    def before(self, e: Tensor, a: Tensor) -> Tensor:
        self._mean(torch.outer(e.double(), e.double()) + a)
        return self.r


class EmaPost(NoisePolicy):
    """R <- beta R + (1 - beta)(εεᵀ + A⁺), ε = R S⁻¹ e the error that the step leaves, to first order. Unbiased."""

    def after(self, e: Tensor, a: Tensor, a_after: Tensor) -> None:
        left = self.r @ torch.linalg.solve(a + self.r, e.double())
        self._mean(torch.outer(left, left) + a_after)


class Innovation(NoisePolicy):
    """R <- beta R + (1 - beta)(eeᵀ - A), before the step. Unbiased, but it may turn indefinite: what is used has its
    eigenvalues raised to `floor`, what is kept has not."""

    def __init__(self, m: int, *, beta: float = 0.95, r0: float = 1.0, floor: float = 1e-6) -> None:
        super().__init__(m, beta=beta, r0=r0)
        self.floor = _positive("floor", floor)

    def before(self, e: Tensor, a: Tensor) -> Tensor:
        self._mean(torch.outer(e.double(), e.double()) - a)
        values, vectors = torch.linalg.eigh(0.5 * (self.r + self.r.mT))
        raised: Tensor = (vectors * values.clamp(min=self.floor)) @ vectors.mT
        return raised


class Scalar(NoisePolicy):
    """The running mean of ‖e‖² / m over all steps so far, times I; at least `floor`."""

    def __init__(self, m: int, *, floor: float = 1e-6) -> None:
        super().__init__(m)
        self.floor, self.mean, self.steps = _positive("floor", floor), 0.0, 0

    def before(self, e: Tensor, a: Tensor) -> Tensor:
        self.steps += 1
        self.mean += (float(e.detach().double().square().mean()) - self.mean) / self.steps
        self.r = max(self.mean, self.floor) * torch.eye(e.numel(), dtype=torch.float64, device=e.device)
        return self.r

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "mean": self.mean, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.mean, self.steps = state["mean"], state["steps"]


class Fixed(NoisePolicy):
    """r I."""

    def __init__(self, m: int, *, r: float = 1.0) -> None:
        super().__init__(m, r0=_positive("r", r))


class Ggn(NoisePolicy):
    """Λ + epsilon I, Λ = diag(ŷ) - ŷŷᵀ: the model's own covariance of class probabilities ŷ. No memory.

    The target is one-hot, hence e says what ŷ is: of its entries only the target's is positive. With epsilon = 0, R is
    singular along 1: use `softmax_observation`, which needs no inverse.
    """

    def __init__(self, m: int, *, epsilon: float = 1e-2) -> None:
        if not epsilon >= 0.0:
            raise ValueError(f"noise_policy: `epsilon` must be >= 0, got {epsilon!r}")
        super().__init__(m)
        self.epsilon = epsilon

    def before(self, e: Tensor, a: Tensor) -> Tensor:
        error = e.detach().double()
        y = torch.nn.functional.one_hot(error.argmax(), error.numel()) - error
        self.r = torch.diag(y) - torch.outer(y, y) + self.epsilon * torch.eye(y.numel(), dtype=y.dtype, device=y.device)
        return self.r


POLICIES: dict[str, Callable[..., NoisePolicy]] = {
    "ema_pre": EmaPre,
    "ema_post": EmaPost,
    "innovation": Innovation,
    "ggn": Ggn,
    "scalar": Scalar,
    "fixed": Fixed,
}


def noise_policy(name: str, m: int, **options: Any) -> NoisePolicy:
    """The estimator `name` of R for m outputs, with its options.

    Raises:
      ValueError: an unknown name, or an option out of its range. TypeError: an option that it does not have.

    Example:
      >>> import torch
      >>> from lowrank_core.adapters.noise import noise_policy
      >>> noise_policy("fixed", 2, r=4.0).before(torch.zeros(2), torch.eye(2)).tolist()
      [[4.0, 0.0], [0.0, 4.0]]
    """
    if name not in POLICIES:
        raise ValueError(f"noise_policy: `name` must be one of {', '.join(POLICIES)}, got {name!r}")
    own = list(inspect.signature(POLICIES[name]).parameters)[1:]
    unknown = sorted(options.keys() - own)
    if unknown:
        raise TypeError(
            f"noise_policy: options of {name!r} must be among {', '.join(own)}, got {', '.join(unknown)}; leave it out"
        )
    return POLICIES[name](m, **options)


def _positive(name: str, value: float) -> float:
    if not value > 0.0:
        raise ValueError(f"noise_policy: `{name}` must be > 0, got {value!r}")
    return value

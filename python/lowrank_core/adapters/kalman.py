"""What stands between a model's outputs and `kalman_diag_step`: whitening, deflation, process noise, forgetting.

A Jacobian is a tensor [m, n] or a list of [m, *shape], one for each tensor of parameters, as `jacobian_rows` returns
it; p likewise. Matrices of the outputs, [m, m], are float64. The estimators of the noise R are in `noise`, the softmax
observation as cotangents in `cotangents`; the cap on the predicted change of the outputs is the step's `kl_limit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from lowrank_core.adapters.cotangent_rows import damped
from lowrank_core.adapters.cotangents import softmax_root

Rows: TypeAlias = "Tensor | Sequence[Tensor]"

FADING_START = 0.98  # lambda_0
FADING_RATE = 0.9987  # nu


class Observation(NamedTuple):
    """A whitened Jacobian and the score, as `kalman_diag_step_` takes them."""

    jac: Rows
    score: Rows


def whiten(h: Rows, e: Tensor, r: Tensor | float) -> Observation:
    """M = C⁻¹ H and the score Mᵀ C⁻¹ e, for noise R = C Cᵀ.

    Args:
      h: [m, n], or a list of [m, *shape]: the Jacobian of the outputs.
      e: [m], target minus output.
      r: the noise: a number, [m] or [m, m], positive definite.

    Returns:
      Observation in the dtype and shapes of `h`.

    Raises:
      ValueError: R is not positive definite; deflate it, or add to its diagonal.

    Source: the Kalman update is invariant to an invertible map of the outputs.

    Example:
      >>> import torch
      >>> from lowrank_core.adapters import kalman
      >>> jac, score = kalman.whiten(torch.eye(2), torch.tensor([2.0, 4.0]), 4.0)  # noise of deviation 2
      >>> jac.tolist(), score.tolist()
      ([[0.5, 0.0], [0.0, 0.5]], [0.5, 1.0])
    """
    root, failed = torch.linalg.cholesky_ex(noise_matrix(r, e))
    if bool(failed):
        raise ValueError(
            "whiten: `r` must be positive definite, got one that is not; deflate it or add to its diagonal"
        )
    eye = torch.eye(e.numel(), dtype=torch.float64, device=e.device)
    inverse = torch.linalg.solve_triangular(root, eye, upper=False)
    return _observation(h, inverse, inverse.mT @ (inverse @ e.double()))


def softmax_observation(jac: Rows, logits: Tensor, target: Tensor, *, epsilon: float = 0.0) -> Observation:
    """The observation of class probabilities, from the Jacobian of the logits.

    Args:
      jac: [c, n] or a list of [c, *shape]: ∂logits/∂theta.
      logits: [c], read detached: a constant. target: [], its class.
      epsilon: >= 0, of the noise R = Λ + epsilon I, Λ = diag(ŷ) - ŷŷᵀ. 0: M = Cᵀ J and score Jᵀ(y - ŷ), no inverse.
        Above 0 it damps what Λ does not where a prediction is confident and wrong.

    Returns:
      Observation in the dtype and shapes of `jac`.

    Source: `softmax_root`. For epsilon > 0 the probabilities' Jacobian Λ J is whitened by R.

    Example:
      >>> import torch
      >>> from lowrank_core.adapters import kalman
      >>> jac, score = kalman.softmax_observation(torch.eye(2), torch.zeros(2), torch.tensor(1))
      >>> score.tolist()  # y - ŷ
      [-0.5, 0.5]
    """
    y = torch.softmax(logits.detach().double(), -1)
    error = torch.nn.functional.one_hot(target, logits.numel()).double() - y
    if not epsilon > 0.0:
        return _observation(jac, softmax_root(logits).mT, error)
    return _observation(jac, *damped(y, error, epsilon))


def deflate(r: Tensor, a: Tensor) -> Tensor:
    """R + c 11ᵀ / m with c = tr(A + R) / m, which keeps S = A + R regular where the outputs are probabilities.

    There 1ᵀH = 0 and 1ᵀe = 0, so an estimated R decays to 0 along 1 until no Cholesky factor is left. What is added
    along 1 meets neither H nor e: the step is exactly the same.

    Args:
      r: [m, m], the noise. a: [m, m], H diag(p) Hᵀ.

    Example:
      >>> import torch
      >>> from lowrank_core.adapters import kalman
      >>> kalman.deflate(torch.zeros(2, 2), torch.eye(2)).tolist()
      [[0.5, 0.5], [0.5, 0.5]]
    """
    m = r.shape[-1]
    return r + torch.trace(a + r) / m**2


def predicted_covariance(h: Rows, p: Rows) -> Tensor:
    """A = H diag(p) Hᵀ [m, m] in float64, summed over lists.

    Example:
      >>> import torch
      >>> from lowrank_core.adapters import kalman
      >>> kalman.predicted_covariance(torch.tensor([[1.0, 2.0]]), torch.tensor([0.5, 0.25])).tolist()
      [[1.5]]
    """
    pairs = [(h, p)] if isinstance(h, Tensor) and isinstance(p, Tensor) else list(zip(h, p, strict=True))
    total = None
    for rows, variances in pairs:
        flat = rows.reshape(rows.shape[0], -1).double()
        part = (flat * variances.reshape(-1).double()) @ flat.mT
        total = part if total is None else total + part
    if total is None:
        raise ValueError("predicted_covariance: `h` must hold at least one tensor, got none")
    return total


def divergence(jac: Rows, delta: Rows) -> float:
    """½ ‖M delta‖², what `kl_limit` bounds: the Kullback–Leibler divergence of the predictions to second order.

    Example:
      >>> import torch
      >>> from lowrank_core.adapters import kalman
      >>> kalman.divergence(torch.eye(2), torch.tensor([1.0, 2.0]))
      2.5
    """
    return 0.5 * float(predicted_change(jac, delta).detach().square().sum())


def predicted_change(jac: Rows, delta: Rows) -> Tensor:
    """M delta [m] in float64, summed over lists: how the outputs change, to first order.

    Example:
      >>> import torch
      >>> from lowrank_core.adapters import kalman
      >>> kalman.predicted_change(torch.eye(2), torch.tensor([1.0, 2.0])).tolist()
      [1.0, 2.0]
    """
    pairs = [(jac, delta)] if isinstance(jac, Tensor) and isinstance(delta, Tensor) else zip(jac, delta, strict=True)
    parts = [rows.reshape(rows.shape[0], -1).double() @ d.reshape(-1).double() for rows, d in pairs]
    return torch.stack(parts).sum(0)


def moved_on(score: Sequence[Tensor], jac: Sequence[Tensor], delta: Sequence[Tensor]) -> list[Tensor]:
    """The score after the parameters have moved by `delta`, on the same linearization: g - Mᵀ M delta.

    Example:
      >>> import torch
      >>> from lowrank_core.adapters import kalman
      >>> kalman.moved_on([torch.tensor([3.0])], [torch.tensor([[2.0]])], [torch.tensor([0.5])])
      [tensor([1.])]
    """
    ahead = predicted_change(jac, delta).unsqueeze(0)
    return [g - _mixed(ahead, rows)[0] for g, rows in zip(score, jac, strict=True)]


def predict_variance(p: Tensor, *, q: float = 0.0, alpha: float = 0.0, gamma: float = 1.0) -> Tensor:
    """(1 + alpha)(gamma² p + q): the variance before an update, for parameters that drift.

    Args:
      p: variances. q: >= 0, added per step, in units of p. alpha: >= 0, inflation. gamma: in (0, 1], decay of theta,
        which the caller applies to theta itself.

    Source: the prediction of a Kalman filter with dynamics theta <- gamma theta + noise of variance q.

    Example:
      >>> import torch
      >>> from lowrank_core.adapters import kalman
      >>> kalman.predict_variance(torch.tensor([0.5, 1.0]), q=0.25).tolist()
      [0.75, 1.25]
    """
    if q < 0 or alpha < 0 or not 0 < gamma <= 1:
        raise ValueError(
            f"predict_variance: `q` and `alpha` must be >= 0 and `gamma` in (0, 1], got {q!r}, {alpha!r} and {gamma!r}"
        )
    return (1.0 + alpha) * (gamma**2 * p + q)


def fade(p: Tensor, factor: float) -> Tensor:
    """p / factor: fading memory, for a factor lambda in (0, 1].

    Example:
      >>> import torch
      >>> from lowrank_core.adapters import kalman
      >>> kalman.fade(torch.tensor([1.0, 2.0]), 0.5).tolist()
      [2.0, 4.0]
    """
    if not 0.0 < factor <= 1.0:
        raise ValueError(f"fade: `factor` must be in (0, 1], got {factor!r}")
    return p / factor


def next_fading(factor: float, *, rate: float = FADING_RATE) -> float:
    """lambda of the next step, rate lambda + 1 - rate: from FADING_START towards 1, no forgetting.

    Example:
      >>> from lowrank_core.adapters import kalman
      >>> kalman.next_fading(0.5, rate=0.5)
      0.75
    """
    return rate * factor + 1.0 - rate


def noise_matrix(r: Tensor | float, e: Tensor) -> Tensor:
    """R [m, m] in float64 from a number, a diagonal or a matrix.

    Example:
      >>> import torch
      >>> from lowrank_core.adapters import kalman
      >>> kalman.noise_matrix(4.0, torch.zeros(2)).tolist()
      [[4.0, 0.0], [0.0, 4.0]]
    """
    noise = torch.as_tensor(r, dtype=torch.float64, device=e.device)
    return noise if noise.ndim == 2 else torch.diag_embed(noise.expand(e.numel()))


def _observation(h: Rows, mix: Tensor, weights: Tensor) -> Observation:
    """M = mix H, score Hᵀ weights."""
    if isinstance(h, Tensor):
        return Observation(_mixed(mix, h), _mixed(weights.unsqueeze(0), h)[0])
    return Observation([_mixed(mix, rows) for rows in h], [_mixed(weights.unsqueeze(0), rows)[0] for rows in h])


def _mixed(mix: Tensor, h: Tensor) -> Tensor:
    """mix H over all dimensions of H but the first."""
    return (mix.to(h.dtype) @ h.reshape(h.shape[0], -1)).view(mix.shape[0], *h.shape[1:])

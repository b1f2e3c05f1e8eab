"""Cotangents whose rows of the Jacobian are a whitened observation: what `jacobian_rows` is given for a Kalman step.

Those for class logits end with the row y - ŷ, whose Jacobian row is the score of the cross-entropy (minus its
gradient); `split_score` takes it off again.

Cotangents are constants: `logits` is read detached, and what is returned carries no graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lowrank_core.adapters.cotangent_rows import drawn_rows, lumped_rows, root_rows, softmax_rows


def identity_cotangents(outputs: Tensor) -> Tensor:
    """[k, *outputs.shape] for k = number of outputs: the plain Jacobian.

    Example:
      >>> import torch
      >>> from lowrank_core import adapters
      >>> adapters.identity_cotangents(torch.zeros(2, 3)).shape
      torch.Size([6, 2, 3])
    """
    return torch.eye(outputs.numel(), dtype=outputs.dtype, device=outputs.device).view(outputs.numel(), *outputs.shape)


def have_softmax(logits: Tensor, counted: Tensor) -> bool:
    """Whether softmax is defined along the last dimension where `counted`: no NaN, no inf, not -inf alone."""
    return bool(logits.detach().amax(-1)[counted].isfinite().all())


def softmax_root(logits: Tensor) -> Tensor:
    """C with C Cᵀ = diag(ŷ) - ŷŷᵀ for ŷ = softmax(logits): [..., c, c] for logits [..., c], float64.

    C = diag(σ)(I - σσᵀ) with the unit vector σ = √ŷ: exact, without an inverse, for ŷ down to 0.
    """
    return root_rows(torch.softmax(logits.detach().double(), -1).sqrt(), 0, logits.shape[-1]).mT.contiguous()


def softmax_cotangents(logits: Tensor, target: Tensor) -> Tensor:
    """Cotangents of the softmax observation, one block of c rows for each sample, and y - ŷ last.

    Args:
      logits: [c] or [b, c]; read detached, the result is a constant.
      target: [] or [b], int64 classes.

    Returns:
      [b c + 1, *logits.shape] float64. With J = ∂logits/∂theta the rows are M = Cᵀ J for C Cᵀ = diag(ŷ) - ŷŷᵀ, and
      Jᵀ(y - ŷ): the extended Kalman filter on probabilities with their own covariance as noise, stacked over samples.

    Raises:
      ValueError: a shape or class that does not fit.

    Source: the Gauss–Newton matrix of the softmax; the factor is ours.

    Example:
      >>> import torch
      >>> from lowrank_core import adapters
      >>> rows = adapters.softmax_cotangents(torch.zeros(2), torch.tensor(1))  # ŷ = 1/2, 1/2
      >>> rows.shape, rows[-1].tolist()
      (torch.Size([3, 2]), [-0.5, 0.5])
    """
    _check("softmax_cotangents", logits, target, (1, 2))
    return softmax_rows(logits, target, torch.float64).stacked(logits)


def lumped_cotangents(logits: Tensor, target: Tensor, *, keep: int) -> Tensor:
    """As `softmax_cotangents` for many classes: the `keep` likeliest and the target stay, the others count as one.

    Args:
      logits: [c] or [b, c]; read detached, the result is a constant.
      target: [] or [b], int64 classes.
      keep: >= 1.

    Returns:
      [b q + 1, *logits.shape] float64, q = min(keep, c) + 2 (a row of zeros where the target is among the likeliest, or
      nothing is left). The score is exact; the Fisher matrix is a lower bound of the full one.

    Raises:
      ValueError: a shape, class or number that does not fit.

    Source: the data-processing inequality for Fisher information: lumping classes discards observations.

    Example:
      >>> import torch
      >>> from lowrank_core import adapters
      >>> rows = adapters.lumped_cotangents(torch.zeros(1000), torch.tensor(1), keep=4)
      >>> rows.shape
      torch.Size([7, 1000])
    """
    _check("lumped_cotangents", logits, target, (1, 2))
    if keep < 1:
        raise ValueError(f"lumped_cotangents: `keep` must be >= 1, got {keep}")
    return lumped_rows(logits, target, torch.float64, keep=keep).stacked(logits)


def monte_carlo_cotangents(logits: Tensor, target: Tensor, *, samples: int, seed: int) -> Tensor:
    """Draws of the Fisher matrix, for any number of classes and tokens: `samples` rows, and y - ŷ last.

    Args:
      logits: [..., c]: tokens of any number of dimensions; read detached, the result is a constant.
      target: [...], int64 classes; negative ones (such as torch's -100) mark tokens that do not count.
      samples: >= 1.
      seed: of the draws; give every step its own.

    Returns:
      [samples + 1, *logits.shape] float64: (ỹ - ŷ) / √samples with labels ỹ drawn from ŷ, each token for itself. The
      mean of MᵀM is the Fisher matrix of the sum over tokens, because the draws are independent.

    Raises:
      ValueError: a shape, class or number that does not fit; NaN or infinity at a token that counts.

    Source: Kunstner, Balles, Hennig, "Limitations of the empirical Fisher approximation", 2019, on drawn labels.

    Example:
      >>> import torch
      >>> from lowrank_core import adapters
      >>> logits, target = torch.zeros(5, 1000), torch.tensor([1, 2, 3, 4, -100])  # the last token does not count
      >>> adapters.monte_carlo_cotangents(logits, target, samples=2, seed=0).shape
      torch.Size([3, 5, 1000])
    """
    if samples < 1:
        raise ValueError(f"monte_carlo_cotangents: `samples` must be >= 1, got {samples}")
    _check("monte_carlo_cotangents", logits, target, None)
    if not have_softmax(logits, target >= 0):
        raise ValueError(
            "monte_carlo_cotangents: `logits` must be finite at every token that counts, got NaN or infinity; give it "
            "a class below 0"
        )
    return drawn_rows(logits, target, torch.float64, samples=samples, seed=seed).stacked(logits)


def split_score(rows: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """(jac, score) from rows whose last one is that of y - ŷ.

    Example:
      >>> import torch
      >>> from lowrank_core import adapters
      >>> rows = [torch.tensor([[1.0, 2.0], [3.0, 4.0]])]
      >>> adapters.split_score(rows)
      ([tensor([[1., 2.]])], [tensor([3., 4.])])
    """
    return [r[:-1] for r in rows], [r[-1] for r in rows]


def _check(op: str, logits: Tensor, target: Tensor, ndims: tuple[int, ...] | None) -> None:
    """Refuses shapes and classes that do not fit."""
    if logits.ndim < 1 or (ndims is not None and logits.ndim not in ndims):
        raise ValueError(f"{op}: `logits` must be [c] or [b, c], got shape {list(logits.shape)}")
    if tuple(target.shape) != tuple(logits.shape[:-1]):
        raise ValueError(
            f"{op}: `target` must be {list(logits.shape[:-1])} for `logits` of shape {list(logits.shape)}, got shape "
            f"{list(target.shape)}"
        )
    least = 0 if ndims else None
    if target.numel() and (int(target.max()) >= logits.shape[-1] or (least is not None and int(target.min()) < 0)):
        raise ValueError(
            f"{op}: `target` must be below {logits.shape[-1]} and >= 0, got {target.reshape(-1).tolist()[:8]}"
        )

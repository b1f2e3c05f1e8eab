"""Cotangents whose rows of the Jacobian are a whitened observation: what `jacobian_rows` is given for a Kalman step.

Those for class logits end with the row y - ŷ, whose Jacobian row is the score of the cross-entropy (minus its
gradient); `split_score` takes it off again.

Cotangents are constants: `logits` is read detached, and what is returned carries no graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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
    root = torch.softmax(logits.detach().double(), -1).sqrt()
    eye = torch.eye(logits.shape[-1], dtype=torch.float64, device=logits.device)
    return root.unsqueeze(-1) * (eye - root.unsqueeze(-1) * root.unsqueeze(-2))


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
    flat, classes = _checked("softmax_cotangents", logits, target, (1, 2))
    return _stacked(softmax_root(flat).mT, flat, classes, logits)


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
    flat, classes = _checked("lumped_cotangents", logits, target, (1, 2))
    if keep < 1:
        raise ValueError(f"lumped_cotangents: `keep` must be >= 1, got {keep}")
    probabilities = torch.softmax(flat.detach().double(), -1)
    blocks = torch.stack(
        [_lumped(y, int(c), min(keep, y.numel())) for y, c in zip(probabilities, classes, strict=True)]
    )
    return _stacked(blocks, flat, classes, logits)


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
    flat, classes = _checked("monte_carlo_cotangents", logits, target, None)
    counted = classes >= 0
    if not have_softmax(flat, counted):
        raise ValueError(
            "monte_carlo_cotangents: `logits` must be finite at every token that counts, got NaN or infinity; give it "
            "a class below 0"
        )
    probabilities = torch.softmax(flat[counted].detach().double(), -1)
    generator = torch.Generator(device=logits.device).manual_seed(seed)
    drawn = torch.multinomial(probabilities, samples, replacement=True, generator=generator).mT
    rows = probabilities.new_zeros(samples + 1, *flat.shape)
    rows[:-1, counted] = (torch.nn.functional.one_hot(drawn, flat.shape[-1]).double() - probabilities) / samples**0.5
    rows[-1, counted] = _error(probabilities, classes[counted])
    return rows.view(samples + 1, *logits.shape)


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


def _checked(op: str, logits: Tensor, target: Tensor, ndims: tuple[int, ...] | None) -> tuple[Tensor, Tensor]:
    """Logits [b, c] and classes [b]."""
    if logits.ndim < 1 or (ndims is not None and logits.ndim not in ndims):
        raise ValueError(f"{op}: `logits` must be [c] or [b, c], got shape {list(logits.shape)}")
    if tuple(target.shape) != tuple(logits.shape[:-1]):
        raise ValueError(
            f"{op}: `target` must be {list(logits.shape[:-1])} for `logits` of shape {list(logits.shape)}, got shape "
            f"{list(target.shape)}"
        )
    classes = target.reshape(-1)
    least = 0 if ndims else None
    if classes.numel() and (int(classes.max()) >= logits.shape[-1] or (least is not None and int(classes.min()) < 0)):
        raise ValueError(f"{op}: `target` must be below {logits.shape[-1]} and >= 0, got {classes.tolist()[:8]}")
    return logits.reshape(-1, logits.shape[-1]), classes


def _error(probabilities: Tensor, classes: Tensor) -> Tensor:
    """y - ŷ, [b, c]."""
    return torch.nn.functional.one_hot(classes.clamp(min=0), probabilities.shape[-1]).double() - probabilities


def _stacked(blocks: Tensor, flat: Tensor, classes: Tensor, logits: Tensor) -> Tensor:
    """Rows [b q + 1, *logits.shape] from one block [q, c] for each sample, which touches that sample alone."""
    b, q, c = blocks.shape
    rows = blocks.new_zeros(b * q + 1, b, c)
    for i in range(b):
        rows[i * q : (i + 1) * q, i] = blocks[i]
    rows[-1] = _error(torch.softmax(flat.detach().double(), -1), classes)
    return rows.view(b * q + 1, *logits.shape)


def _lumped(y: Tensor, target: int, keep: int) -> Tensor:
    """[keep + 2, c]: Cᵀ of the lumped probabilities times the map from logits to lumped logits."""
    kept = y.topk(keep).indices.tolist()
    kept += [] if target in kept else [target]
    rest = torch.ones_like(y, dtype=torch.bool)
    rest[kept] = False
    mass = y[rest].sum()
    parts = y.new_zeros(keep + 2, y.numel())
    parts[range(len(kept)), kept] = 1.0
    sums = y.new_zeros(keep + 2)
    sums[: len(kept)] = y[kept]
    if mass > 0:
        parts[-1] = torch.where(rest, y / mass, 0.0)  # of the logarithm of the sum of exponentials
        sums[-1] = mass
    root = sums.sqrt()
    factor = root.unsqueeze(-1) * (torch.eye(keep + 2, dtype=y.dtype, device=y.device) - torch.outer(root, root))
    return factor.mT @ parts

"""What a Kalman filter observes of a model's outputs: cotangents whose Jacobian rows are M and the score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lowrank_core.adapters.cotangents import (
    have_softmax,
    identity_cotangents,
    lumped_cotangents,
    monte_carlo_cotangents,
    softmax_cotangents,
    softmax_root,
)
from lowrank_core.checks import is_count, require, require_choice
from lowrank_core.optim.seeds import mix_seed

IGNORED = -100  # torch's own mark of a token that does not count
MOST_ROWS = 64  # classes that "auto" gives a row each
FISHERS = ("auto", "full", "lumped", "monte_carlo")


@dataclass(frozen=True)
class Softmax:
    """Class probabilities with their own covariance as noise: no R, and no inverse.

    `fisher`: "full": a row for each class of each sample; "lumped": for each of the `keep` likeliest classes, the
    target, and all others together; "monte_carlo": `draws` rows for any number of classes and tokens; "auto": the last
    for [B, L, V], else the first for up to 64 classes, else the second.
    """

    fisher: str = "auto"
    keep: int = 8
    draws: int = 4

    def check(self, op: str) -> None:
        """Raises ValueError if a value is out of its range."""
        require_choice(op, "fisher", self.fisher, FISHERS)
        require(is_count(self.keep, 1), op, "keep", "be an int >= 1", self.keep)
        require(is_count(self.draws, 1), op, "draws", "be an int >= 1", self.draws)

    def kind(self, logits: Tensor) -> str:
        """What "auto" means for these logits."""
        if self.fisher != "auto":
            return self.fisher
        return "monte_carlo" if logits.ndim > 2 else "full" if logits.shape[-1] <= MOST_ROWS else "lumped"

    def cotangents(self, logits: Tensor, target: Tensor, seed: int) -> Tensor:
        """[k + 1, *logits.shape], the last row that of the score. Each token is a sample; ignored ones do not count."""
        kind = self.kind(logits)
        if kind == "monte_carlo":
            return monte_carlo_cotangents(logits, target, samples=self.draws, seed=seed)
        flat, classes = logits.reshape(-1, logits.shape[-1]), target.reshape(-1)
        counted = classes != IGNORED
        some, labels = flat[counted], classes[counted]
        found = (
            lumped_cotangents(some, labels, keep=self.keep) if kind == "lumped" else softmax_cotangents(some, labels)
        )
        rows = found.new_zeros(len(found), *flat.shape)
        rows[:, counted] = found
        return rows.view(len(rows), *logits.shape)


class View(NamedTuple):
    """One observation: cotangents whose rows are asked for, of how many samples, and the error.

    Without an error the rows are M and, last, the score; with one they are H, to be whitened. `sums_to_zero`: rows and
    error of probabilities, which sum to 0 over the outputs. Without cotangents nothing can be observed: NaN or infinity
    where a token counts.
    """

    cotangents: Tensor
    samples: int
    error: Tensor | None = None
    sums_to_zero: bool = False


def gaussian_cotangents(outputs: Tensor, targets: Tensor) -> Tensor:
    """[numel + 1, *outputs.shape]: every output with noise 1, and the error target - output last."""
    error = targets.to(outputs.dtype) - outputs.detach()
    return torch.cat([identity_cotangents(outputs), error.unsqueeze(0)])


def probability_cotangents(logits: Tensor) -> Tensor:
    """[c, 1, c] float64: rows of the Jacobian of the class probabilities of one sample, Λ = diag(ŷ) - ŷŷᵀ."""
    root = softmax_root(logits)
    return (root @ root.mT).transpose(0, 1)


def count_of(targets: Tensor) -> int:
    """How many samples or tokens count."""
    return len(targets) if targets.is_floating_point() else int((targets != IGNORED).sum())


def is_clear(outputs: Tensor, targets: Tensor) -> bool:
    """Whether all that counts has class probabilities. What else is not finite is for the rows to show."""
    return targets.is_floating_point() or have_softmax(outputs, targets != IGNORED)


def views_of(
    op: str, outputs: Tensor, targets: Tensor, softmax: Softmax | None, seed: int, *, batch: str
) -> list[View]:
    """What is observed in turn; `softmax` is None where the noise is estimated.

    Raises:
      ValueError: `estimated_views` refuses.
    """
    if softmax is None:
        return estimated_views(op, outputs, targets)
    return own_views(outputs, targets, softmax, seed, batch=batch)


def own_views(outputs: Tensor, targets: Tensor, softmax: Softmax, seed: int, *, batch: str) -> list[View]:
    """With the model's own noise: all samples "stacked", each one, or their "mean"."""

    def of(outputs: Tensor, targets: Tensor, seed: int) -> Tensor:
        if not is_clear(outputs, targets):
            return outputs.new_empty(0, *outputs.shape)
        floats = targets.is_floating_point()
        return gaussian_cotangents(outputs, targets) if floats else softmax.cotangents(outputs, targets, seed)

    drawn = not targets.is_floating_point() and softmax.kind(outputs) == "monte_carlo"
    if batch == "sequential":
        return [
            View(_placed(of(outputs[i : i + 1], targets[i : i + 1], mix_seed(seed, i)), i, outputs), count)
            for i in range(len(outputs))
            if (count := count_of(targets[i : i + 1]))
        ]
    rows, count = of(outputs, targets, seed), count_of(targets)
    if batch == "mean" and not drawn and len(rows):  # rows of all samples that count on top of each other
        rows = _blocks(rows, outputs, targets)
    return [View(rows, count)]


def estimated_views(op: str, outputs: Tensor, targets: Tensor) -> list[View]:
    """Each sample for itself: rows of the Jacobian of its probabilities, or of its float outputs, and the error.

    Raises:
      ValueError: tokens, or more than `MOST_ROWS` outputs: an estimated noise is a full matrix.
    """
    few = outputs.ndim == 2 and outputs.shape[1] <= MOST_ROWS
    rule = f"be [B, C] with C up to {MOST_ROWS} where the noise is estimated"
    require(few, op, "outputs", rule, list(outputs.shape), 'pass policy="ggn"')
    found = []
    for i in range(len(outputs)):
        if targets.is_floating_point():
            rows, error = identity_cotangents(outputs[i : i + 1]), (targets[i] - outputs[i]).double()
        elif count_of(targets[i : i + 1]):
            rows = probability_cotangents(outputs[i])
            error = nn.functional.one_hot(targets[i], outputs.shape[1]) - torch.softmax(outputs[i].double(), -1)
        else:
            continue
        found.append(View(_placed(rows, i, outputs), 1, error, not targets.is_floating_point()))
    return found


def _placed(rows: Tensor, number: int, outputs: Tensor) -> Tensor:
    """Cotangents [k, 1, ...] of one sample as those of all `outputs`."""
    whole = rows.new_zeros(len(rows), *outputs.shape)
    whole[:, number] = rows[:, 0]
    return whole


def _blocks(rows: Tensor, outputs: Tensor, targets: Tensor) -> Tensor:
    """Of rows that are one block after the other, a block for each sample: their sum over √samples; the last stays."""
    count = count_of(targets)
    mean = rows[:-1].view(count, -1, *outputs.shape).sum(0) / count**0.5
    return torch.cat([mean, rows[-1:]])


def loss_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """0-d float32, detached: cross-entropy, mean over what counts; or half the squared error, mean over samples."""
    with torch.no_grad():
        if targets.is_floating_point():
            return 0.5 * (outputs.float() - targets.float()).square().sum() / max(1, len(outputs))
        flat = outputs.float().reshape(-1, outputs.shape[-1])
        return nn.functional.cross_entropy(flat, targets.reshape(-1), ignore_index=IGNORED)


def checked(op: str, outputs: object, targets: object) -> tuple[Tensor, Tensor]:
    """Both, classes as int64.

    Raises:
      TypeError: no tensors, or logits that are no floats. ValueError: not [B, C] with classes [B], [B, L, V] with
        classes [B, L], or floats of one shape; a class out of range, or none that counts.
    """
    for name, given in (("outputs", outputs), ("targets", targets)):
        if not isinstance(given, Tensor):
            raise TypeError(f"{op}: `{name}` must be a tensor, got {type(given).__name__}")
    assert isinstance(outputs, Tensor) and isinstance(targets, Tensor)
    if not outputs.is_floating_point():
        raise TypeError(f"{op}: `outputs` must be floating-point, got {outputs.dtype}")
    require(outputs.ndim >= 2, op, "outputs", "be [B, C], or [B, L, V] of a language model", list(outputs.shape))
    require(targets.device == outputs.device, op, "targets", f"be on {outputs.device}", str(targets.device))
    floats = targets.is_floating_point()
    wanted = outputs.shape if floats else outputs.shape[:-1]
    if targets.shape != wanted:
        raise ValueError(
            f"{op}: `targets` must be {list(wanted)} for `outputs` of shape {list(outputs.shape)}, got shape "
            f"{list(targets.shape)}; integers are classes, floats are values of the outputs"
        )
    if floats:
        return outputs, targets
    if targets.dtype == torch.bool or targets.is_complex():
        raise TypeError(f"{op}: `targets` must be integers or floats, got {targets.dtype}; convert them")
    classes = targets.long()
    counted = classes[classes != IGNORED]
    rule = f"have a class that counts, not {IGNORED} alone"
    require(len(counted) > 0, op, "targets", rule, list(targets.shape))
    least, most = int(counted.min()), int(counted.max())
    rule = f"be classes from 0 to {outputs.shape[-1] - 1}, or {IGNORED}"
    require(least >= 0 and most < outputs.shape[-1], op, "targets", rule, least if least < 0 else most)
    return outputs, classes

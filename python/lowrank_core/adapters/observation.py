"""What a Kalman filter observes of a model's outputs: cotangents whose Jacobian rows are M and the score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lowrank_core.adapters.cotangent_rows import (
    Cotangents,
    block_rows,
    counted_blocks,
    drawn_rows,
    gaussian_mean_rows,
    gaussian_rows,
    identity_rows,
    lumped_rows,
    softmax_mean_rows,
    softmax_rows,
)
from lowrank_core.adapters.cotangents import have_softmax, softmax_root
from lowrank_core.adapters.noise import NoisePolicy, noise_policy
from lowrank_core.checks import is_count, require, require_choice
from lowrank_core.optim.seeds import mix_seed

IGNORED = -100  # torch's own mark of a token that does not count
MOST_ROWS = 64  # classes that "auto" gives a row each
MOST_OBSERVED = 2**14  # rows m of one update, whose matrix S [m, m] is float64
FISHERS = ("auto", "full", "lumped", "monte_carlo")


@dataclass(frozen=True)
class Softmax:
    """Class probabilities with their own covariance as noise: no R, and no inverse.

    `fisher`: "full": a row for each class of each sample; "lumped": for each of the `keep` likeliest classes, the
    target, and all others together; "monte_carlo": `draws` rows for any number of classes and tokens; "auto": the last
    for [B, L, V], else the first for up to 64 classes, else the second. More than `MOST_OBSERVED` rows are refused.
    `epsilon`: >= 0, what is added to the noise, also to the 1 of float targets.
    """

    fisher: str = "auto"
    keep: int = 8
    draws: int = 4
    epsilon: float = 0.0

    def check(self, op: str, batch: str) -> None:
        """Raises ValueError if a value is out of its range, or does not go with `batch`."""
        require_choice(op, "fisher", self.fisher, FISHERS)
        require(is_count(self.keep, 1), op, "keep", "be an int >= 1", self.keep)
        require(is_count(self.draws, 1), op, "draws", "be an int >= 1", self.draws)
        self.check_kind(op, self.fisher, batch)

    def check_kind(self, op: str, kind: str, batch: str) -> None:
        """Raises ValueError if rows of that kind cannot have the mean taken, or more noise added."""
        means = {"lumped": "each sample keeps other classes", "monte_carlo": "drawn rows are sums over samples already"}
        if batch == "mean" and kind in means:
            other = 'fisher="full"' if kind == "lumped" else 'batch="stacked"'
            raise ValueError(
                f'{op}: `batch` must be "stacked" or "sequential" where `fisher` is {kind!r}, got \'mean\', but '
                f"{means[kind]}; pass {other}"
            )
        if self.epsilon > 0.0 and kind == "monte_carlo":
            raise ValueError(
                f"{op}: `policy_options` must leave out epsilon where labels are drawn, got {self.epsilon}; pass "
                'fisher="lumped"'
            )

    def kind(self, logits: Tensor) -> str:
        """What "auto" means for these logits."""
        if self.fisher != "auto":
            return self.fisher
        return "monte_carlo" if logits.ndim > 2 else "full" if logits.shape[-1] <= MOST_ROWS else "lumped"

    def rows(self, logits: Tensor, target: Tensor, seed: int, *, mean: bool = False) -> Cotangents:
        """Those of M and, last, that of the score. Each token is a sample; ignored ones do not count."""
        kind, dtype = self.kind(logits), logits.dtype
        if kind == "monte_carlo":
            return drawn_rows(logits, target, dtype, samples=self.draws, seed=seed)
        if kind == "lumped":
            return lumped_rows(logits, target, dtype, keep=self.keep, epsilon=self.epsilon)
        return (softmax_mean_rows if mean else softmax_rows)(logits, target, dtype, epsilon=self.epsilon)


class View(NamedTuple):
    """One observation: cotangents whose rows are asked for, of how many samples, and the error.

    Without an error the rows are M and, last, the score; with one they are H, to be whitened. `sums_to_zero`: rows and
    error of probabilities, which sum to 0 over the outputs. Without cotangents nothing can be observed: NaN or infinity
    where a token counts.
    """

    cotangents: Cotangents
    samples: int
    error: Tensor | None = None
    sums_to_zero: bool = False


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
      ValueError: as `estimated_views` and `own_views`.
    """
    if softmax is None:
        return estimated_views(op, outputs, targets)
    return own_views(op, outputs, targets, softmax, seed, batch=batch)


def own_views(op: str, outputs: Tensor, targets: Tensor, softmax: Softmax, seed: int, *, batch: str) -> list[View]:
    """With the model's own noise: all samples "stacked", each one, or their "mean".

    Raises:
      ValueError: more rows than `MOST_OBSERVED`, or as `Softmax.check_kind`.
    """
    floats, mean, noise = targets.is_floating_point(), batch == "mean", 1.0 + softmax.epsilon
    if not floats:
        softmax.check_kind(op, softmax.kind(outputs), batch)
    found = []
    for turn in range(len(outputs)) if batch == "sequential" else (None,):
        some = range(len(outputs)) if turn is None else range(turn, turn + 1)
        own = targets if floats or turn is None else _only(targets, turn)
        count = len(some) if floats else count_of(own)
        if not count:
            continue
        if not is_clear(outputs, own):
            rows = Cotangents(0, lambda: iter(()))
        elif floats:
            rows = gaussian_mean_rows(outputs, own, noise) if mean else gaussian_rows(outputs, own, some, noise)
        else:
            rows = softmax.rows(outputs, own, seed if turn is None else mix_seed(seed, turn), mean=mean)
            rule = f"give at most {MOST_OBSERVED} rows of one update"
            got = f"{softmax.kind(outputs)!r}, {len(rows) - 1} rows for `outputs` of shape {list(outputs.shape)}"
            if len(rows) > MOST_OBSERVED + 1:
                raise ValueError(f'{op}: `fisher` must {rule}, got {got}; pass fisher="monte_carlo"')
        found.append(View(rows, count))
    return found


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
            rows, error = identity_rows(outputs, range(i, i + 1)), (targets[i] - outputs[i]).double()
        elif count_of(targets[i : i + 1]):
            root = softmax_root(outputs[i])
            rows = block_rows(outputs, i, root @ root.mT)  # of the Jacobian of ŷ, diag(ŷ) - ŷŷᵀ
            error = nn.functional.one_hot(targets[i], outputs.shape[1]) - torch.softmax(outputs[i].double(), -1)
        else:
            continue
        found.append(View(rows, 1, error, not targets.is_floating_point()))
    return found


def _only(targets: Tensor, sample: int) -> Tensor:
    """`targets` in which that sample alone counts."""
    found = torch.full_like(targets, IGNORED)
    found[sample] = targets[sample]
    return found


def resumed(name: str, m: int, options: Mapping[str, Any], state: dict[str, Any] | None) -> NoisePolicy:
    """A new `noise_policy`, which goes on from the `state_dict` of another if there is one."""
    policy = noise_policy(name, m, **options)
    if state:
        policy.load_state_dict(state)
    return policy


def loss_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """0-d float32, detached: cross-entropy, mean over what counts; or half the squared error, mean over samples."""
    with torch.no_grad():
        if targets.is_floating_point():
            return 0.5 * (outputs.float() - targets.float()).square().sum() / max(1, len(outputs))
        flat, classes = outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1)
        sums = [
            nn.functional.cross_entropy(flat[some].float(), classes[some], reduction="sum")
            for some in counted_blocks(flat, targets)
        ]
        return torch.stack(sums).sum() / count_of(targets)


def evaluated(op: str, outputs: Any, targets: Any) -> tuple[Any, Any]:
    """Outputs and targets as given, or as a closure returned them; (loss, None) where gradients are to be read.

    Raises:
      TypeError: outputs that are no closure, without targets. ValueError: a closure that returned another tuple.
    """
    if targets is not None or outputs is None:
        return outputs, targets
    if not callable(outputs):
        return checked(op, outputs, targets)
    with torch.enable_grad():
        found = outputs()
    if not isinstance(found, tuple):
        return found, None
    require(len(found) == 2, op, "outputs", "be a closure of two tensors, or of a loss", f"one of {len(found)}")
    return found


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

"""The table from a combination of parts to a kernel that steps a whole bucket at once.

An entry does what `compose` does with the same lists, whose result is its test, in two halves: `draft` reads the
gradients and says whether they are finite, `finish` changes moments and weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import product
from typing import Protocol, cast

import torch
from torch import Tensor

from lowrank_core.memory.geometry import Geometry, Side
from lowrank_core.ops.arrays import resolve_precision
from lowrank_core.ops.subspace_step.step import project_list, step_list
from lowrank_core.optim import guard
from lowrank_core.optim.codecs import BFloat16, Blocks8, Float32, State, StochasticBFloat16
from lowrank_core.optim.compose import compose
from lowrank_core.optim.parts import Bucket, Slot
from lowrank_core.optim.projectors import ExactSVD, RandomizedSVD
from lowrank_core.optim.residuals import Drop
from lowrank_core.optim.rules import Adam

Key = tuple[str, type, type, type, type, type]  # device, space, residual, rule, moment codec, basis codec


@dataclass
class Draft:
    """What is known of a step before anything is changed: the lists of the kernel and the low-rank gradients."""

    slots: list[Slot] = field(default_factory=list)  # those of the bucket that the kernel steps
    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    bases: list[Tensor] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    low: list[Tensor] = field(default_factory=list)
    finite: bool = True


class FusedStep(Protocol):
    """A kernel that steps buckets of one combination of parts."""

    def draft(self, bucket: Bucket, states: list[State]) -> Draft:
        """Reads the gradients of `bucket`, for the bases that are held in `states`."""
        ...

    def finish(self, bucket: Bucket, draft: Draft, states: list[State]) -> None:
        """Takes the step that was drafted."""
        ...


class SubspaceAdam:
    """Adam in a subspace with a basis on one side, the rest dropped. What it cannot step it leaves to `compose`."""

    def draft(self, bucket: Bucket, states: list[State]) -> Draft:
        draft = Draft()
        for slot, state in zip(bucket.slots, states, strict=True):
            matrix = _matrix_of(slot, state, bucket)
            if matrix is None:
                continue
            draft.slots.append(slot)
            draft.params.append(matrix)
            draft.grads.append(slot.matrix())
            draft.bases.append(state["proj.basis"])
            draft.right.append(cast(Geometry, slot.geometry).side == Side.RIGHT)
        draft.low, draft.finite = project_list(
            draft.params, draft.grads, draft.bases, draft.right,
            maximize=bucket.maximize, precision=resolve_precision("step", None),
        )  # fmt: skip
        return draft

    def finish(self, bucket: Bucket, draft: Draft, states: list[State]) -> None:
        drafted = set(draft.slots)
        held = [state for slot, state in zip(bucket.slots, states, strict=True) if slot in drafted]
        if len(held) < len(states):
            others = [pair for pair in zip(bucket.slots, states, strict=True) if pair[0] not in drafted]
            compose(replace(bucket, slots=[slot for slot, _ in others]), [state for _, state in others], None)
        if not held:
            return
        counts = [state["step"] for state in held]
        rule, space = cast(Adam, bucket.parts.rule), cast(RandomizedSVD | ExactSVD, bucket.space)
        step_list(
            draft.params, draft.grads, draft.bases, *_stored(held, "exp_avg"), *_stored(held, "exp_avg_sq"), [],
            draft.right, [int(count) + 1 for count in counts], _seeds(bucket, draft),
            low=draft.low, rule="adam", betas=rule.betas, eps=rule.eps, lr=bucket.lr,
            weight_decay=bucket.weight_decay, scale=space.scale, residual="drop", residual_scale=0.0, growth=1.0,
            maximize=bucket.maximize, stochastic=bucket.rounding == "stochastic",
            precision=resolve_precision("step", None),
        )  # fmt: skip
        torch._foreach_add_(counts, 1.0)
        torch.autograd.graph.increment_version(draft.params)  # a graph made before holds the old weights


def _matrix_of(slot: Slot, state: State, bucket: Bucket) -> Tensor | None:
    """The weight as the matrix that is stepped; None where it is not stored as one, has no basis on one side, or is a
    float64 one with coded moments."""
    geometry, coded = slot.geometry, not isinstance(bucket.parts.moment_codec, Float32)
    if geometry is None or "proj.basis" not in state or (coded and slot.work == torch.float64):
        return None
    if slot.weight.ndim == 2:
        return slot.weight
    return slot.weight.view(geometry.rows, geometry.cols) if slot.weight.is_contiguous() else None


def _seeds(bucket: Bucket, draft: Draft) -> list[int]:
    """Of the draws of each weight; zeros where nothing is drawn."""
    if bucket.rounding == "nearest" and isinstance(bucket.parts.moment_codec, Float32):
        return [0] * len(draft.slots)
    return [bucket.draw(slot, 0).seed for slot in draft.slots]


def _stored(states: list[State], name: str) -> tuple[list[Tensor], list[Tensor]]:
    """Values and scales of a moment."""
    codes = f"{name}.codes"
    if states and codes in states[0]:
        return [state[codes] for state in states], [state[f"{name}.scales"] for state in states]
    return [state[name] for state in states], []


FUSED: dict[Key, FusedStep] = {
    ("cpu", space, Drop, Adam, moments, basis): SubspaceAdam()
    for space, moments, basis in product(
        (RandomizedSVD, ExactSVD), (Float32, StochasticBFloat16, Blocks8), (Float32, BFloat16)
    )
}


def key_of(bucket: Bucket) -> Key:
    """The combination that `bucket` is stepped by."""
    parts = bucket.parts
    made_of = (bucket.space, bucket.residual, parts.rule, parts.moment_codec, parts.basis_codec)
    space, residual, rule, moments, basis = (type(part) for part in made_of)
    return (bucket.slots[0].weight.device.type, space, residual, rule, moments, basis)


def fused(bucket: Bucket) -> FusedStep | None:
    """The kernel for `bucket`, or None where it is composed: so it is where a step is decided on the device."""
    return None if guard.deferred(bucket.slots[0].weight.device) else FUSED.get(key_of(bucket))

"""The table from a combination of parts to a kernel that steps a whole bucket at once.

An entry does what `compose` does with the same draft; its test compares the two. It works in two halves: `draft` reads
the gradients and says whether they are finite, `finish` changes moments and weights.
"""

from __future__ import annotations

from itertools import product
from typing import Protocol, cast

import torch
from torch import Tensor

from lowrank_core.ops.arrays import resolve_precision
from lowrank_core.ops.subspace_step.sketched import factored_list
from lowrank_core.ops.subspace_step.step import count_step, project_list, step_list
from lowrank_core.optim.bucket import Bucket, batches
from lowrank_core.optim.devices import can_draw
from lowrank_core.optim.draft import Draft
from lowrank_core.optim.each_step import EachStep
from lowrank_core.optim.following import FollowingStep
from lowrank_core.optim.lifts import bases_held, lift_steps, matrix_of, rights_of, together, zeros
from lowrank_core.optim.lines import LinesStep
from lowrank_core.optim.parts.codecs import Blocks8, Float32, StochasticBFloat16
from lowrank_core.optim.parts.projectors.by_energy import ByEnergy
from lowrank_core.optim.parts.projectors.correlated import Correlated
from lowrank_core.optim.parts.projectors.following import Following
from lowrank_core.optim.parts.projectors.gaussian import Gaussian
from lowrank_core.optim.parts.projectors.orthonormal import ExactSVD, RandomFrame, RandomizedSVD
from lowrank_core.optim.parts.projectors.packed import PackedBasis
from lowrank_core.optim.parts.projectors.selected import Blocks, DrawnLines, Whole
from lowrank_core.optim.parts.projectors.selection import EachStepSelection
from lowrank_core.optim.parts.residuals.drop import Drop
from lowrank_core.optim.parts.residuals.fed_back import FedBack
from lowrank_core.optim.parts.residuals.feedback import Feedback
from lowrank_core.optim.parts.residuals.limited import Limits, ScaledGradient, ScaledRest
from lowrank_core.optim.parts.residuals.sign import SignRest
from lowrank_core.optim.parts.residuals.sketched import SketchedMomentum
from lowrank_core.optim.parts.rules.adabelief import AdaBelief
from lowrank_core.optim.parts.rules.adafactor import THRESHOLD, Adafactor
from lowrank_core.optim.parts.rules.adam import Adam
from lowrank_core.optim.parts.rules.average import Average
from lowrank_core.optim.parts.rules.column_adam import ColumnAdam
from lowrank_core.optim.parts.rules.lines import Lines, MomentumLines, Sinkhorn
from lowrank_core.optim.parts.rules.lion import Lion
from lowrank_core.optim.parts.rules.newton_schulz import NewtonSchulz
from lowrank_core.optim.plain import PlainStep
from lowrank_core.optim.selected import SelectedStep
from lowrank_core.optim.sketched import SketchedStep
from lowrank_core.optim.slots import State
from lowrank_core.optim.states import stored

Key = tuple[str, type | None, type | None, type, type]  # device, projector, residual, rule, moment codec

_SECOND = ("exp_avg_sq", "exp_avg_var")


class FusedStep(Protocol):
    """A kernel that steps buckets of one combination of parts."""

    def draft(self, bucket: Bucket, draft: Draft, states: list[State]) -> None:
        """Puts the gradients of `draft` in the subspaces that are held in `states`."""
        ...

    def finish(self, bucket: Bucket, draft: Draft, states: list[State], gate: Tensor | None) -> None:
        """Takes the step that was drafted; see `compose`. A kernel of the host gets None for a gate."""
        ...


class SubspaceStep:
    """`subspace_step_` for subspaces with a basis on one side."""

    def draft(self, bucket: Bucket, draft: Draft, states: list[State]) -> None:
        projector, count, size = bucket.parts.projector, len(draft.slots), together(bucket, draft)
        draft.low, draft.finite = [], True
        for some in batches(size, count):
            slots = draft.slots[some]
            bases = bases_held(projector, slots, states[some])
            low, finite = project_list(
                [matrix_of(slot) for slot in slots], draft.grads[some], bases, rights_of(slots),
                maximize=bucket.maximize, precision=resolve_precision("step", None),
            )  # fmt: skip
            draft.low += low
            draft.finite &= finite
            draft.bases = bases if size >= count else None

    def finish(self, bucket: Bucket, draft: Draft, states: list[State], gate: Tensor | None) -> None:
        lows, count = draft.low or [], len(states)
        whole = draft.bases is not None or _by_shape(bucket)
        for some in batches(count if whole else together(bucket, draft), count):
            part = Draft(draft.slots[some], draft.grads[some], lows[some], bases=draft.bases)
            self._finish(bucket, part, states[some])

    def _finish(self, bucket: Bucket, draft: Draft, states: list[State]) -> None:
        parts, lows = bucket.parts, draft.low or []
        params, counts = [matrix_of(slot) for slot in draft.slots], [state["step"] for state in states]
        bases = _bases(bucket, draft, states)
        steps, seeds = bucket.clocks(draft, states)
        if parts.schedule.observes:
            parts.schedule.observe(states, lows)
        held = parts.residual.limits(states)
        limits = Limits(held, [parts.rule.unbias(step) for step in steps]) if held else None
        options = {**parts.rule.kernel(), **(parts.residual.kernel() or {})}
        step_list(
            params, draft.grads, bases, *stored(states, "exp_avg"), *_second_moments(states),
            limits.corrected if limits else [], rights_of(draft.slots), steps, seeds, low=lows, lr=bucket.lr,
            weight_decay=bucket.weight_decay, maximize=bucket.maximize, stochastic=bucket.rounding == "stochastic",
            precision=resolve_precision("step", None), **options,
        )  # fmt: skip
        if limits:
            limits.hold([parts.residual.floor(low) for low in lows])
        count_step(counts)
        torch.autograd.graph.increment_version(params)  # a graph made before holds the old weights


class FactoredStep(SubspaceStep):
    """The same with Adafactor's directions, which a kernel makes of the low-rank gradients in their place."""

    def finish(self, bucket: Bucket, draft: Draft, states: list[State], gate: Tensor | None) -> None:
        rule, lows, slots = cast(Adafactor, bucket.parts.rule), draft.low or [], draft.slots
        steps, seeds = bucket.clocks(draft, states)
        if bucket.parts.schedule.observes:
            bucket.parts.schedule.observe(states, lows)
        factored_list(
            lows, *stored(states, "exp_avg_sq_row"), *stored(states, "exp_avg_sq_col"), steps, seeds,
            [rule.decay(step) for step in steps], eps=rule.eps, threshold=THRESHOLD,
        )  # fmt: skip
        lift_steps(bucket, Draft(slots, draft.grads, lows), _bases(bucket, draft, states), steps)
        count_step([state["step"] for state in states])


def _second_moments(states: list[State]) -> tuple[list[Tensor], list[Tensor]]:
    """Values and scales of what a rule keeps beside its mean; none where it keeps nothing."""
    return next((found for name in _SECOND if (found := stored(states, name))[0]), ([], []))


def _bases(bucket: Bucket, draft: Draft, states: list[State]) -> list[Tensor]:
    """The bases for the way back."""
    projector, slots = bucket.parts.projector, zip(draft.slots, states, strict=True)
    if draft.bases is not None:
        return draft.bases
    if _by_shape(bucket):
        shapes = [next(iter(slot.where(state).basis_shapes.values())) for slot, state in slots]
        return [zero.expand(shape) for zero, shape in zip(zeros(draft.low or []), shapes, strict=True)]
    return bases_held(projector, draft.slots, states)


def _by_shape(bucket: Bucket) -> bool:
    """True if the way back reads no basis but its shape: a drawn one, beside which channels of G are scaled."""
    return isinstance(bucket.parts.projector, Gaussian) and isinstance(bucket.parts.residual, ScaledGradient)


_CODECS = (Float32, StochasticBFloat16, Blocks8)
FUSED: dict[Key, FusedStep] = {
    ("cpu", projector, residual, Adam, moments): SubspaceStep()
    for projector, residual, moments in product(
        (RandomizedSVD, ExactSVD, Gaussian, Correlated, ByEnergy), (Drop, ScaledRest, ScaledGradient), _CODECS
    )
}
FUSED |= {
    ("cpu", projector, SignRest, Adam, moments): SubspaceStep()
    for projector, moments in product((RandomizedSVD, RandomFrame), _CODECS)
}
FUSED |= {
    ("cpu", projector, Drop, rule, moments): step
    for projector, (rule, step), moments in product(
        (RandomizedSVD, ExactSVD),
        ((Lion, SubspaceStep()), (AdaBelief, SubspaceStep()), (Adafactor, FactoredStep())),
        _CODECS,
    )
}
FUSED |= {
    ("cpu", projector, SignRest, Adam, moments): SelectedStep()
    for projector, moments in product((DrawnLines, Blocks), _CODECS)
}
FUSED |= {("cpu", PackedBasis, Drop, Adam, moments): SubspaceStep() for moments in _CODECS}
FUSED |= {("cpu", Gaussian, SketchedMomentum, Average, moments): SketchedStep() for moments in _CODECS}
FUSED |= {("cpu", Following, FedBack, Adam, moments): FollowingStep() for moments in _CODECS}
FUSED |= {("cpu", None, None, Adam, moments): PlainStep() for moments in _CODECS}
FUSED |= {
    ("cpu", projector, residual, rule, moments): EachStep()
    for moments in _CODECS
    for projector, residual, rule in (
        (EachStepSelection, Feedback, ColumnAdam),
        (EachStepSelection, Drop, ColumnAdam),
        (EachStepSelection, Feedback, NewtonSchulz),
        (Whole, Feedback, NewtonSchulz),
    )
}
FUSED |= {
    ("cpu", Whole, Drop, rule, moments): LinesStep()
    for rule, moments in product((Lines, MomentumLines, Sinkhorn), _CODECS)
}


def key_of(bucket: Bucket) -> Key:
    """The combination of parts that steps the weights of `bucket`."""
    parts, device = bucket.parts, bucket.device.type
    if not bucket.projected:
        return (device, None, None, type(parts.plain), type(parts.plain_codec))
    return (device, type(parts.projector), type(parts.residual), type(parts.rule), type(parts.moment_codec))


def fused(bucket: Bucket) -> FusedStep | None:
    """The kernel for `bucket`, or None if it is composed.

    A bucket is composed if the device decides about its step or holds its rate, for the coded moments of float64
    weights, and of projected weights if their memory is no matrix or there are two bases, or if they look for the
    first of the subspaces that they choose in each step.
    """
    coded = not isinstance(bucket.codec, Float32) and bucket.dtype == torch.float64
    if not can_draw(bucket.device) or coded or isinstance(bucket.lr, Tensor):
        return None
    if bucket.projected and (not bucket.as_matrix or bucket.two_sided or bucket.parts.residual.kernel() is None):
        return None
    if bucket.projected and bucket.parts.projector.each_step and not bucket.in_step:
        return None
    return FUSED.get(key_of(bucket))

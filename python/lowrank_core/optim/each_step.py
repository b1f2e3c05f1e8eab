"""The step of matrices for which atoms are chosen at every step, or which are taken whole."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from lowrank_core.ops.subspace_step.scratch import scratch
from lowrank_core.ops.subspace_step.step import count_step
from lowrank_core.optim.bucket import Bucket, runs
from lowrank_core.optim.draft import Draft
from lowrank_core.optim.dtypes import name_of
from lowrank_core.optim.lines import step_along
from lowrank_core.optim.parts.atoms import basis_in, lift_into
from lowrank_core.optim.parts.projectors import Query
from lowrank_core.optim.parts.projectors.selection import EachStepSelection
from lowrank_core.optim.parts.residuals.drop import Drop
from lowrank_core.optim.parts.residuals.feedback import Feedback
from lowrank_core.optim.parts.rules import Direction
from lowrank_core.optim.parts.rules.newton_schulz import NewtonSchulz
from lowrank_core.optim.parts.subspaces import Subspace
from lowrank_core.optim.parts.subspaces.indices import Indices
from lowrank_core.optim.parts.subspaces.selection import All
from lowrank_core.optim.refresh import signed, take
from lowrank_core.optim.slots import Draw, Slot, State
from lowrank_core.optim.step import ruled, write


class EachStep:
    """`compose` with the choice, the feedback and what is read of a gradient in one pass; matrices are orthogonalized,
    and weights written, in one call for many of them."""

    def draft(self, bucket: Bucket, draft: Draft, states: list[State]) -> None:
        """Nothing: a choice that is fed back changes the state."""

    def finish(self, bucket: Bucket, draft: Draft, states: list[State], gate: Tensor | None) -> None:
        for some in runs(draft.slots):
            slots = draft.slots[some]
            chosen = _choose(bucket, slots, draft.grads[some], states[some])
            directions = _directions(bucket, slots, [low for _, low in chosen], states[some])
            scales = [_scale(bucket, *place) for place in zip(slots, states[some], strict=True)]
            if isinstance(bucket.parts.projector, EachStepSelection):
                lows = [one.numerator if one.denominator is None else one.dense() for one in directions]
                matrices = _lifted(lows, [cast(Indices, subspace) for subspace, _ in chosen])
            else:  # a matrix that is taken whole is orthogonalized
                matrices = [direction.numerator for direction in directions]
            if not step_along(bucket, slots, matrices, scales, states[some]):
                for matrix, scale, slot, state in zip(matrices, scales, slots, states[some], strict=True):
                    write(slot, bucket, Direction(matrix * scale), slot.draw(state["step"].item()))


def _choose(
    bucket: Bucket, slots: list[Slot], grads: list[Tensor], states: list[State]
) -> list[tuple[Subspace, Tensor]]:
    """Begins a step: adopts subspaces, which are returned with the gradients in them. Feedback moves on."""
    count_step([state["step"] for state in states])
    draws = [slot.draw(state["step"].item()) for slot, state in zip(slots, states, strict=True)]
    grads = [signed(bucket, grad.to(slot.work)) for slot, grad in zip(slots, grads, strict=True)]
    chosen = _chosen(bucket, slots, grads, states, draws)
    for slot, state, draw, (subspace, _) in zip(slots, states, draws, chosen, strict=True):
        if not (isinstance(subspace, All) and state["proj.refreshes"]):
            take(bucket, slot, state, subspace, draw.step - 1)
    if bucket.parts.schedule.observes:
        bucket.parts.schedule.observe(states, [low for _, low in chosen])
    return chosen


def _chosen(
    bucket: Bucket, slots: list[Slot], grads: list[Tensor], states: list[State], draws: list[Draw]
) -> list[tuple[Subspace, Tensor]]:
    """Subspaces, and the gradients in them; those held do not change."""
    projector, residual = bucket.parts.projector, bucket.parts.residual
    places = [slot.where(state) for slot, state in zip(slots, states, strict=True)]
    if not isinstance(residual, Feedback):
        queries = []
        for slot, state, grad, where, draw in zip(slots, states, grads, places, draws, strict=True):
            found = state["proj.refreshes"]
            held = projector.held(slot, state) if found else None
            queries.append(Query(grad, where, held, 0, dict, draw.step - 1, found, slot.seed, slot.turn))
        return [(one.subspace, cast(Tensor, one.low)) for one in projector.find(queries)]
    if isinstance(projector, EachStepSelection):
        chosen = residual.take_chosen(grads, places, projector.norm_ord, states, draws)
        bases = [basis_in(state, projector.basis) for state in states]
        found = zip(places, chosen, bases, strict=True)
        return [(projector.as_subspace(where, one, basis), one.low) for where, one, basis in found]
    each = zip(places, grads, states, draws, strict=True)
    return [(All(where), residual.take_whole(grad, state, draw)) for where, grad, state, draw in each]


def _directions(bucket: Bucket, slots: list[Slot], lows: list[Tensor], states: list[State]) -> list[Direction]:
    rule, codec = bucket.parts.rule, bucket.parts.moment_codec
    if isinstance(rule, NewtonSchulz):
        found = _room(lows, [(low.shape[0], low.shape[1]) for low in lows])
        rule.orthogonalize_into(found, lows)
        return [Direction(matrix) for matrix in found]
    return [
        ruled(rule, codec, low, slot, state, slot.draw(state["step"].item()))
        for slot, low, state in zip(slots, lows, states, strict=True)
    ]


def _lifted(lows: list[Tensor], atoms: list[Indices]) -> list[Tensor]:
    """Directions as matrices of their weights' shapes."""
    lengths = [(one.length, low.shape[1 - one.axis]) for one, low in zip(atoms, lows, strict=True)]
    found = _room(lows, [size if one.axis == 0 else size[::-1] for one, size in zip(atoms, lengths, strict=True)])
    indices, sides, bases = zip(*((one.indices, one.side, one.basis) for one in atoms), strict=True)
    lift_into(found, lows, indices, sides, bases)
    return found


def _room(likes: list[Tensor], shapes: list[tuple[int, int]]) -> list[Tensor]:
    """Uninitialised matrices for one step, in memory that is kept from one to the next."""
    return scratch(likes, shapes, [name_of(like.dtype) for like in likes])


def _scale(bucket: Bucket, slot: Slot, state: State) -> float:
    """The factor on a direction."""
    residual = bucket.parts.residual
    return residual.factor(slot.where(state)) if isinstance(residual, Feedback) else cast(Drop, residual).scale

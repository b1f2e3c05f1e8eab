"""The step of matrices for which atoms are chosen at every step, or which are taken whole."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import cast

import torch
from torch import Tensor

from lowrank_core.optim.bucket import Bucket
from lowrank_core.optim.parts.projectors import Query
from lowrank_core.optim.parts.projectors.selection import EachStepSelection
from lowrank_core.optim.parts.residuals.drop import Drop
from lowrank_core.optim.parts.residuals.feedback import Feedback
from lowrank_core.optim.parts.rules import Direction
from lowrank_core.optim.parts.rules.newton_schulz import NewtonSchulz
from lowrank_core.optim.parts.subspaces import Subspace
from lowrank_core.optim.parts.subspaces.selection import All
from lowrank_core.optim.refresh import signed, take
from lowrank_core.optim.slots import Draft, Slot, State
from lowrank_core.optim.step import ruled, write

_TOGETHER = 2**17  # elements of small matrices that are orthogonalized in one call


class EachStep:
    """`compose` with the choice, the feedback and what is read of a gradient in one pass, and small matrices of one
    shape orthogonalized together."""

    def draft(self, bucket: Bucket, draft: Draft, states: list[State]) -> None:
        """Nothing: a choice that is fed back changes the state."""

    def finish(self, bucket: Bucket, draft: Draft, states: list[State], gate: Tensor | None) -> None:
        for some in _runs(bucket, draft.slots):
            slots, parts = draft.slots[some], bucket.parts
            chosen = [_choose(bucket, *each) for each in zip(slots, draft.grads[some], states[some], strict=True)]
            directions = _directions(bucket, slots, [low for _, low in chosen], states[some])
            for slot, state, (subspace, _), found in zip(slots, states[some], chosen, directions, strict=True):
                if isinstance(parts.residual, Feedback):
                    found = parts.residual.lifted(found, subspace, slot.where(state))
                else:
                    found = cast(Drop, parts.residual).lifted(found, subspace)
                write(slot, bucket, found, slot.draw(state["step"].item()))


def _choose(bucket: Bucket, slot: Slot, grad: Tensor, state: State) -> tuple[Subspace, Tensor]:
    """Begins a step: adopts its subspace, which is returned with the gradient in it. The feedback moves on."""
    projector, residual, where = bucket.parts.projector, bucket.parts.residual, slot.where(state)
    state["step"] += 1
    step, grad = state["step"].item(), signed(bucket, grad.to(slot.work))
    if not isinstance(residual, Feedback):
        (found,) = projector.find([Query(grad, where, None, 0)])
        subspace, low = found.subspace, cast(Tensor, found.low)
    elif isinstance(projector, EachStepSelection):
        chosen = residual.take_chosen(grad, where, projector.norm_ord, state, slot.draw(step))
        subspace, low = projector.as_subspace(where, chosen), chosen.low
    else:
        subspace, low = All(where), residual.take_whole(grad, state, slot.draw(step))
    if not (isinstance(subspace, All) and state["proj.refreshes"]):
        take(bucket, slot, state, subspace, step - 1)
    bucket.parts.schedule.observe(state, low)
    return subspace, low


def _directions(bucket: Bucket, slots: list[Slot], lows: list[Tensor], states: list[State]) -> list[Direction]:
    rule, codec = bucket.parts.rule, bucket.parts.moment_codec
    if isinstance(rule, NewtonSchulz):
        together = torch.stack(lows) if len(lows) > 1 else lows[0][None]
        return [Direction(matrix) for matrix in rule.orthogonalized(together)]
    return [
        ruled(rule, codec, low, slot, state, slot.draw(state["step"].item()))
        for slot, low, state in zip(slots, lows, states, strict=True)
    ]


def _runs(bucket: Bucket, slots: list[Slot]) -> Iterator[slice]:
    """Slices of one weight, or of small neighbours of one shape that are orthogonalized together; in their order, which
    counts where weights share memory."""
    small, start = _TOGETHER if isinstance(bucket.parts.rule, NewtonSchulz) else 0, 0
    for stop in range(1, len(slots) + 1):
        full = (stop - start + 1) * prod(slots[start].weight.shape) > small
        if stop == len(slots) or full or slots[stop].geometry != slots[start].geometry:
            yield slice(start, stop)
            start = stop

"""The step of subspaces that follow the gradient, in the memory of what is fed back."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from lowrank_core.optim.bucket import Bucket
from lowrank_core.optim.draft import Draft
from lowrank_core.optim.lifts import lift_steps, rights_of, subtract_lifted
from lowrank_core.optim.parts.projectors.orthonormal import bases_of
from lowrank_core.optim.parts.residuals.fed_back import FedBack
from lowrank_core.optim.parts.subspaces import Subspace
from lowrank_core.optim.refresh import query_of, take
from lowrank_core.optim.slots import Slot, State
from lowrank_core.optim.step import ruled


class FollowingStep:
    """LDAdam's step, weight by weight: A is made where E is kept, and becomes the next E there."""

    def draft(self, bucket: Bucket, draft: Draft, states: list[State]) -> None:
        """Nothing: what is projected is not the gradient alone."""

    def finish(self, bucket: Bucket, draft: Draft, states: list[State], gate: Tensor | None) -> None:
        for slot, grad, state in zip(draft.slots, draft.grads, states, strict=True):
            self._step(bucket, slot, grad, state)

    def _step(self, bucket: Bucket, slot: Slot, grad: Tensor, state: State) -> None:
        parts, (right,) = bucket.parts, rights_of([slot])
        beta1 = cast(FedBack, parts.residual).beta1
        error, finished = state["residual.error"], state["step"].item()
        state["step"] += 1
        signal = error.to(slot.work)  # E itself unless it is stored in half precision
        signal.add_(grad, alpha=-1 if bucket.maximize else 1)
        query = query_of(bucket, slot, signal, state, finished)
        (found,) = parts.projector.find([query])
        low, new = found.subspace.down(signal), _basis(found.subspace)
        if query.held is not None:
            factor = -beta1 / (1 - beta1)
            subtract_lifted(signal, query.moments()["exp_avg"], _basis(query.held), right, factor)
        take(bucket, slot, state, found.subspace, finished)
        direction = ruled(parts.rule, parts.moment_codec, low, slot, state, slot.draw(finished + 1))
        subtract_lifted(signal, direction.numerator, new, right, 1 / (1 - beta1))
        if signal is not error:
            error.copy_(signal)
        part = Draft([slot], [grad], [direction.dense()])
        lift_steps(bucket, part, [new], [int(finished) + 1])


def _basis(subspace: Subspace | None) -> Tensor:
    (basis,) = bases_of(subspace).values()
    return basis

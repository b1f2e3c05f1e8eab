"""The step of subspaces that follow the gradient, in the memory of what is fed back."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from lowrank_core.ops.arrays import resolve_precision
from lowrank_core.ops.subspace_step.following import follow_list
from lowrank_core.ops.subspace_step.step import count_step, step_list
from lowrank_core.optim.bucket import Bucket, runs
from lowrank_core.optim.draft import Draft
from lowrank_core.optim.lifts import lift_steps, matrix_of, rights_of, subtract_lifted
from lowrank_core.optim.parts.codecs import Float32
from lowrank_core.optim.parts.projectors.following import Following
from lowrank_core.optim.parts.projectors.orthonormal import bases_of
from lowrank_core.optim.parts.residuals.fed_back import FedBack
from lowrank_core.optim.parts.rules.adam import Adam
from lowrank_core.optim.parts.subspaces import Subspace
from lowrank_core.optim.parts.subspaces.dense import Dense
from lowrank_core.optim.refresh import query_of, take
from lowrank_core.optim.slots import Slot, State
from lowrank_core.optim.step import ruled


class FollowingStep:
    """LDAdam's step: A is made where E is kept, and becomes the next E there.

    Weights that keep everything in the working dtype, and have a subspace, take it together in a few calls; others one
    by one.
    """

    def draft(self, bucket: Bucket, draft: Draft, states: list[State]) -> None:
        """Nothing: what is projected is not the gradient alone."""

    def finish(self, bucket: Bucket, draft: Draft, states: list[State], gate: Tensor | None) -> None:
        for some in runs(draft.slots):
            part, held = Draft(draft.slots[some], draft.grads[some]), states[some]
            if _kernel_takes(bucket, part.slots, held):
                self._together(bucket, part, held)
                continue
            for slot, grad, state in zip(part.slots, part.grads, held, strict=True):
                self._step(bucket, slot, grad, state)

    def _together(self, bucket: Bucket, draft: Draft, states: list[State]) -> None:
        parts, slots, grads = bucket.parts, draft.slots, draft.grads
        rule, projector = cast(Adam, parts.rule), cast(Following, parts.projector)
        rights, precision = rights_of(slots), resolve_precision("step", None)
        errors, bases, first, second = (
            [state[key] for state in states] for key in ("residual.error", "proj.basis", "exp_avg", "exp_avg_sq")
        )
        steps = [int(state["step"]) for state in states]
        beta1, beta2 = rule.betas
        watched = zip(slots, states, strict=True) if bucket.watches else ()
        were = [_copied(projector.held(slot, state)) for slot, state in watched]
        lows = follow_list(
            errors, grads, bases, first, second, rights, steps, beta1=beta1, beta2=beta2, rho=projector.rho,
            maximize=bucket.maximize, precision=precision,
        )  # fmt: skip
        for slot, state, old in zip(slots, states, were, strict=False):
            for watch in bucket.watches:
                watch.turned(slot, projector.held(slot, state).turn_from(old).overlap())
        params = [matrix_of(slot) for slot in slots]
        step_list(
            params, grads, bases, first, [], second, [], [], rights, [step + 1 for step in steps],
            draft.seeds(bucket.draws), low=lows, lr=bucket.lr, weight_decay=bucket.weight_decay,
            maximize=bucket.maximize, stochastic=bucket.rounding == "stochastic", precision=precision,
            **rule.kernel(), **(parts.residual.kernel() or {}),
        )  # fmt: skip
        subtract_lifted(errors, first, bases, rights, 1 / (1 - beta1))
        count_step([state["step"] for state in states])
        torch.autograd.graph.increment_version(params)  # a graph made before holds the old weights

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
            subtract_lifted([signal], [query.moments()["exp_avg"]], [_basis(query.held)], [right], factor)
        take(bucket, slot, state, found.subspace, finished)
        direction = ruled(parts.rule, parts.moment_codec, low, slot, state, slot.draw(finished + 1))
        subtract_lifted([signal], [direction.numerator], [new], [right], 1 / (1 - beta1))
        if signal is not error:
            error.copy_(signal)
        part = Draft([slot], [grad], [direction.dense()])
        lift_steps(bucket, part, [new], [int(finished) + 1])


def _kernel_takes(bucket: Bucket, slots: list[Slot], states: list[State]) -> bool:
    """True if nothing is stored in codes or half precision, and no first search is due."""
    parts = bucket.parts
    return isinstance(parts.moment_codec, Float32) and all(
        state["proj.refreshes"] and state["residual.error"].dtype == state["proj.basis"].dtype == slot.work
        for slot, state in zip(slots, states, strict=True)
    )


def _basis(subspace: Subspace | None) -> Tensor:
    (basis,) = bases_of(subspace).values()
    return basis


def _copied(subspace: Dense) -> Dense:
    return Dense({side: basis.clone() for side, basis in subspace.bases.items()})

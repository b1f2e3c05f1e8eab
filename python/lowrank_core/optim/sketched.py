"""Flora's step: all weights of a bucket by one kernel, without a normalized gradient."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from lowrank_core.ops.arrays import resolve_precision
from lowrank_core.ops.subspace_step.sketched import sketched_list
from lowrank_core.ops.subspace_step.step import count_step
from lowrank_core.optim.bucket import Bucket, batches
from lowrank_core.optim.draft import Draft
from lowrank_core.optim.lifts import bases_held, matrix_of, rights_of, together
from lowrank_core.optim.parts.residuals.sketched import SketchedMomentum
from lowrank_core.optim.slots import State
from lowrank_core.optim.states import stored


class SketchedStep:
    """`sketched_list`. Each sketch is drawn once in a step."""

    def draft(self, bucket: Bucket, draft: Draft, states: list[State]) -> None:
        """Nothing: what is projected follows from means that a step changes."""

    def finish(self, bucket: Bucket, draft: Draft, states: list[State], gate: Tensor | None) -> None:
        for some in batches(together(bucket, draft), len(states)):
            self._step(bucket, Draft(draft.slots[some], draft.grads[some]), states[some])

    def _step(self, bucket: Bucket, draft: Draft, states: list[State]) -> None:
        residual, slots = cast(SketchedMomentum, bucket.parts.residual), draft.slots
        params, counts = [matrix_of(slot) for slot in slots], [state["step"] for state in states]
        steps = [int(count) + 1 for count in counts]
        sketched_list(
            params, draft.grads, bases_held(bucket.parts.projector, slots, states), *stored(states, "exp_avg"),
            *residual.means(states), rights_of(slots), steps, draft.seeds(bucket.draws),
            [residual.adafactor.decay(step) for step in steps], lr=bucket.lr, weight_decay=bucket.weight_decay,
            maximize=bucket.maximize, stochastic=bucket.rounding == "stochastic",
            precision=resolve_precision("step", None), **residual.kernel(),
        )  # fmt: skip
        count_step(counts)
        torch.autograd.graph.increment_version(params)  # a graph made before holds the old weights

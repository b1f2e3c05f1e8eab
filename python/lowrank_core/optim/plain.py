"""The kernel that steps weights which are not projected."""

from __future__ import annotations

from itertools import groupby
from typing import cast

import torch
from torch import Tensor

from lowrank_core.ops.subspace_step.plain import adamw_list
from lowrank_core.ops.subspace_step.step import count_step
from lowrank_core.optim.bucket import Bucket
from lowrank_core.optim.devices import is_run
from lowrank_core.optim.draft import Draft
from lowrank_core.optim.int8 import Int8Weight
from lowrank_core.optim.parts.rules.adam import Adam
from lowrank_core.optim.slots import Slot, State
from lowrank_core.optim.states import stored
from lowrank_core.optim.step import compose
from lowrank_core.optim.torch_rounding import torchs_rounding


class PlainStep:
    """`adamw_list`: all weights of a bucket in one call, with the bits of `compose`."""

    def draft(self, bucket: Bucket, draft: Draft, states: list[State]) -> None:
        """Nothing: the moments take gradients as they are."""

    def finish(self, bucket: Bucket, draft: Draft, states: list[State], gate: Tensor | None) -> None:
        if _step(bucket, draft, states):
            return
        fits = [_is_dense(slot, state) for slot, state in zip(draft.slots, states, strict=True)]
        start = 0
        for dense, run in groupby(fits):  # in their order, which counts where weights share memory
            some = slice(start, start := start + len(list(run)))
            part = Draft(draft.slots[some], draft.grads[some])
            if not (dense and _step(bucket, part, states[some])):
                compose(bucket, part, states[some], gate)


def _is_dense(slot: Slot, state: State) -> bool:
    """True if the weight and its moments are runs of memory in one order."""
    dense = is_run(slot.weight) and not isinstance(slot.weight, Int8Weight)
    return dense and all(value.is_contiguous() for value in state.values() if isinstance(value, Tensor))


def _step(bucket: Bucket, draft: Draft, states: list[State]) -> bool:
    """True if the kernel has taken the step; False if it did nothing, because memory is shared or no run."""
    rule, rounding = cast(Adam, bucket.parts.plain), torchs_rounding()
    if rounding is None:
        return False
    params, counts = [slot.weight for slot in draft.slots], [state["step"] for state in states]
    steps = [int(count) + 1 for count in counts]
    corrections = {step: rule.corrections(step) for step in set(steps)}
    taken = adamw_list(
        params, [grad.contiguous() for grad in draft.grads], *stored(states, "exp_avg"),
        *stored(states, "exp_avg_sq"), [corrections[step] for step in steps], steps, draft.seeds(bucket.draws),
        betas=rule.betas, eps=rule.eps, lr=bucket.lr, weight_decay=bucket.weight_decay, maximize=bucket.maximize,
        stochastic=bucket.rounding == "stochastic", **rounding._asdict(),
    )  # fmt: skip
    if taken:
        count_step(counts)
        torch.autograd.graph.increment_version(params)  # a graph made before holds the old weights
    return taken

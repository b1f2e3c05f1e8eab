"""The step of matrices of which some lines, or all or none, are stepped by Adam, and the rest by its sign."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from lowrank_core.memory.geometry import Side
from lowrank_core.ops.subspace_step.selected import selected_list
from lowrank_core.ops.subspace_step.step import count_step
from lowrank_core.optim.bucket import Bucket
from lowrank_core.optim.draft import Draft
from lowrank_core.optim.lifts import matrix_of
from lowrank_core.optim.parts.residuals.sign import SignRest
from lowrank_core.optim.parts.rules.adam import Adam
from lowrank_core.optim.refresh import signed
from lowrank_core.optim.slots import Slot, State
from lowrank_core.optim.states import stored
from lowrank_core.optim.torch_rounding import TorchRounding, torchs_rounding


class SelectedStep:
    """`selected_list`: all matrices of a bucket in one call, with the bits of `compose` where torch's rounding is
    known."""

    def draft(self, bucket: Bucket, draft: Draft, states: list[State]) -> None:
        """Nothing: one call reads a gradient while it is near."""

    def finish(self, bucket: Bucket, draft: Draft, states: list[State], gate: Tensor | None) -> None:
        rule, residual, slots = cast(Adam, bucket.parts.rule), cast(SignRest, bucket.parts.residual), draft.slots
        if bucket.parts.schedule.observes:
            bucket.parts.schedule.observe(states, _lows(bucket, draft, states))
        params, counts = [matrix_of(slot) for slot in slots], [state["step"] for state in states]
        steps, seeds = bucket.clocks(draft, states)
        corrections = {step: rule.corrections(step) for step in set(steps)}
        lines = [_lines(slot, state) for slot, state in zip(slots, states, strict=True)]
        rows = [slot.geometry is None or slot.geometry.side != Side.RIGHT for slot in slots]
        selected_list(
            params, draft.grads, lines, rows, *stored(states, "exp_avg"), *stored(states, "exp_avg_sq"),
            [corrections[step] for step in steps], steps, seeds, betas=rule.betas, eps=rule.eps, lr=bucket.lr,
            weight_decay=bucket.weight_decay, scale=residual.scale, sign_scale=residual.sign_scale,
            maximize=bucket.maximize, stochastic=bucket.rounding == "stochastic",
            **(torchs_rounding() or TorchRounding(fused=False, roots="rounded"))._asdict(),
        )  # fmt: skip
        count_step(counts)
        torch.autograd.graph.increment_version(params)  # a graph made before holds the old weights


def _lines(slot: Slot, state: State) -> Tensor:
    """Which rows or columns are selected. Without a list of them all rows are, or none."""
    listed: Tensor | None = state.get("proj.indices")
    return torch.arange(slot.where(state).low_shape[0], device="cpu") if listed is None else listed


def _lows(bucket: Bucket, draft: Draft, states: list[State]) -> list[Tensor]:
    held = bucket.parts.projector.held
    places = zip(draft.slots, draft.grads, states, strict=True)
    return [held(slot, state).down(signed(bucket, grad.to(slot.work))) for slot, grad, state in places]

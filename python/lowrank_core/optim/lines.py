"""The step of matrices along their gradient, or its mean, with lines of one length."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from lowrank_core.ops.subspace_step.lines import lines_list
from lowrank_core.ops.subspace_step.step import count_step
from lowrank_core.optim.bucket import Bucket
from lowrank_core.optim.draft import Draft
from lowrank_core.optim.lifts import matrix_of
from lowrank_core.optim.parts.codecs import decoded, encode
from lowrank_core.optim.parts.residuals.drop import Drop
from lowrank_core.optim.parts.rules import Direction
from lowrank_core.optim.parts.rules.lines import OfLines
from lowrank_core.optim.parts.subspaces.selection import All
from lowrank_core.optim.refresh import signed, take
from lowrank_core.optim.slots import Slot, State
from lowrank_core.optim.step import write


class LinesStep:
    """`lines_list`: all matrices of a bucket in one call, and nothing of a weight's size beside them."""

    def draft(self, bucket: Bucket, draft: Draft, states: list[State]) -> None:
        """Nothing: one call reads a gradient while it is near, as often as it has to."""

    def finish(self, bucket: Bucket, draft: Draft, states: list[State], gate: Tensor | None) -> None:
        rule, slots = cast(OfLines, bucket.parts.rule), draft.slots
        count_step([state["step"] for state in states])
        for slot, state in zip(slots, states, strict=True):
            if not state["proj.refreshes"]:
                take(bucket, slot, state, All(slot.where(state)), 0)
        keeps = bool(rule.layout(()))
        signals = [_signal(bucket, *each) for each in zip(slots, draft.grads, states, strict=True)] if keeps else []
        residual, negated = cast(Drop, bucket.parts.residual), bucket.maximize and not keeps
        scales = [residual.scale] * len(slots)
        if not step_along(bucket, slots, signals or draft.grads, scales, states, maximize=negated, **rule.kernel()):
            for i, (slot, state) in enumerate(zip(slots, states, strict=True)):
                signal = signals[i] if keeps else signed(bucket, draft.grads[i].to(slot.work))
                direction = residual.lifted(Direction(rule.normalized(signal)), All(slot.where(state)))
                write(slot, bucket, direction, slot.draw(state["step"].item()))


def _signal(bucket: Bucket, slot: Slot, grad: Tensor, state: State) -> Tensor:
    """What is normalized where the rule keeps a mean, which advances."""
    rule, codec = cast(OfLines, bucket.parts.rule), bucket.parts.moment_codec
    fields = rule.layout(tuple(grad.shape))
    moments = decoded(codec, fields, state, slot.work)
    signal = rule.signal(signed(bucket, grad.to(slot.work)), moments)
    encode(codec, fields, state, moments, slot.draw(state["step"].item()))
    return signal


def step_along(
    bucket: Bucket,
    slots: list[Slot],
    signals: list[Tensor],
    scales: list[float],
    states: list[State],
    *,
    maximize: bool = False,
    lines: str = "none",
    iterations: int = 1,
) -> bool:
    """W <- (1 - lr weight_decay) W - lr scale N for matrices N, or what `lines` makes of them; the step is counted.

    False if the kernel did nothing, because weights share memory or are float64.
    """
    if bucket.dtype == torch.float64:
        return False
    params = [matrix_of(slot) for slot in slots]
    steps = [int(state["step"]) for state in states]
    seeds = Draft(slots).seeds(bucket.rounding != "nearest")
    taken = lines_list(
        params, [_along_rows(signal) for signal in signals], scales, steps, seeds, lines=lines, iterations=iterations,
        lr=bucket.lr, weight_decay=bucket.weight_decay, maximize=maximize, stochastic=bucket.rounding == "stochastic",
    )  # fmt: skip
    if taken:
        torch.autograd.graph.increment_version(params)  # a graph made before holds the old weights
    return taken


def _along_rows(signal: Tensor) -> Tensor:
    """The same with rows that run along memory, in a dtype that the kernel reads."""
    narrow = signal.float() if signal.dtype == torch.float64 else signal
    return narrow if narrow.stride(1) == 1 else narrow.contiguous()

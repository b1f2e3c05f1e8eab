"""The composition of an optimizer's parts into one step: the specification of every fused kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from lowrank_core.ops.subspace_step.codecs import round_stochastic
from lowrank_core.optim.bucket import Bucket
from lowrank_core.optim.devices import only_if
from lowrank_core.optim.draft import Draft
from lowrank_core.optim.int8 import Int8Weight
from lowrank_core.optim.parts.codecs import Codec, decoded, encode
from lowrank_core.optim.parts.residuals import Seen
from lowrank_core.optim.parts.rules import Direction, Rule, layout_of
from lowrank_core.optim.parts.subspaces import Subspace
from lowrank_core.optim.refresh import select, signal_of, signed
from lowrank_core.optim.slots import Draw, Slot, State


def compose(bucket: Bucket, draft: Draft, states: list[State], gate: Tensor | None) -> None:
    """Takes one step with every parameter of `draft`, part by part.

    Args:
      bucket: what they have in common.
      draft: their gradients.
      states: their states, subspaces up to date.
      gate: None, or a 0-d bool on the bucket's device: if it is false, nothing changes.
    """
    lows = draft.low if draft.settled and draft.low is not None else [None for _ in draft.slots]
    for slot, grad, low, state in zip(draft.slots, draft.gradients(), lows, states, strict=True):
        with only_if(gate, [slot.weight, *(value for value in state.values() if isinstance(value, Tensor))]):
            state["step"] += 1
            # On the host the count is a number; behind a gate it stays where it is, in double for the powers.
            step = state["step"].item() if gate is None else state["step"].double()
            direction = _direction(slot, grad, low, state, bucket, step)
            write(slot, bucket, direction, bucket.clock(slot, state, step))


def lower(bucket: Bucket, draft: Draft, states: list[State]) -> None:
    """Puts the gradients of `draft` in the subspaces that are held, as a kernel's `draft` does."""
    draft.low = []
    for slot, grad, state in zip(draft.slots, draft.grads, states, strict=True):
        signal = signal_of(bucket, grad.to(slot.work), state)
        draft.low.append(bucket.parts.projector.held(slot, state).down(signal))


def _direction(
    slot: Slot, grad: Tensor, low: Tensor | None, state: State, bucket: Bucket, step: float | Tensor
) -> Direction | None:
    """The direction that the parts make of the gradient; None if it was zero so far and names no subspace yet.

    `low` is all that is left of a gradient which was let go of; None: it is whole.
    """
    parts = bucket.parts
    if low is not None:
        return _completed(bucket, slot, grad, grad, low, parts.projector.held(slot, state), state, step)
    grad = signed(bucket, grad.to(slot.work))
    if not bucket.projected:
        return ruled(parts.plain, parts.plain_codec, grad, slot, state, slot.draw(step))
    signal = parts.residual.enter(grad, state)
    if bucket.in_step:
        subspace, low, left = select(bucket, slot, signal, state, step - 1)
    elif state["proj.refreshes"] == 0:
        return None
    else:
        subspace = parts.projector.held(slot, state)
        low, left = subspace.down(signal), None
    return _completed(bucket, slot, grad, signal, low, subspace, state, step, left)


def _completed(
    bucket: Bucket,
    slot: Slot,
    grad: Tensor,
    signal: Tensor,
    low: Tensor,
    subspace: Subspace,
    state: State,
    step: float | Tensor,
    left: Tensor | None = None,
) -> Direction:
    """The direction that rule and residual make of a gradient, `signal` behind `enter`, `low` in its subspace."""
    parts = bucket.parts
    if parts.schedule.observes:
        parts.schedule.observe([state], [low])
    draw = bucket.clock(slot, state, step)
    direction = ruled(parts.rule, parts.moment_codec, low, slot, state, draw)
    seen = Seen(signal, low, direction, subspace, slot.where(state), left, grad, draw)
    return parts.residual.complete(seen, state)


def ruled(rule: Rule, codec: Codec, grad: Tensor, slot: Slot, state: State, draw: Draw) -> Direction:
    """The direction that `rule` makes of a gradient, whole or in its subspace; its moments advance."""
    fields = rule.layout(tuple(grad.shape)) if slot.geometry is None else layout_of(rule, slot.where(state))
    moments = decoded(codec, fields, state, slot.work)
    direction = rule.update(grad, moments, draw.step)
    encode(codec, fields, state, moments, draw)
    return direction


def write(slot: Slot, bucket: Bucket, direction: Direction | None, draw: Draw) -> None:
    """W <- (1 - lr weight_decay) W - lr direction, in the working precision and rounded once.

    The only place where a weight changes or decays.
    """
    param = slot.weight
    # The same tensor unless it is half precision, or stored in codes.
    weight = param.decoded(slot.work) if isinstance(param, Int8Weight) else param.to(slot.work)
    if bucket.weight_decay != 0:
        weight.mul_(1 - bucket.lr * bucket.weight_decay)
    if direction is not None:
        if direction.numerator.shape != param.shape:  # a matrix, of a weight with more dimensions
            direction = direction.reshaped(param.shape)
        direction.subtract_from_(weight, bucket.lr)
    if isinstance(param, Int8Weight):
        param.write(weight, draw.seed, draw.number())
    elif weight is not param:
        param.copy_(_rounded(weight, slot, bucket, draw))


def _rounded(weight: Tensor, slot: Slot, bucket: Bucket, draw: Draw) -> Tensor:
    """The values that a half-precision parameter takes: `weight`, to be rounded to nearest, or rounded without bias."""
    if bucket.rounding == "nearest" or slot.weight.dtype != torch.bfloat16:
        return weight
    rounded = torch.empty(weight.shape, dtype=torch.bfloat16, device=weight.device)
    round_stochastic(rounded.view(1, -1), weight.reshape(1, -1), seed=draw.seed, step=draw.number())
    return rounded

"""The composition of an optimizer's parts: the specification of every fused kernel."""

from __future__ import annotations

from collections.abc import Sequence
from math import frexp, inf
from typing import cast

import torch
from torch import Tensor

from lowrank_core.memory.geometry import Geometry
from lowrank_core.ops.subspace_step.codecs import round_stochastic
from lowrank_core.optim.codecs import NO_DRAW, State
from lowrank_core.optim.guard import only_if
from lowrank_core.optim.parts import FORMAT, Bucket, Parts, Slot
from lowrank_core.optim.projectors import Bases, Query
from lowrank_core.optim.rules import Direction, Moments
from lowrank_core.optim.seeds import mix_seed


def compose(bucket: Bucket, states: list[State], gate: Tensor | None) -> None:
    """Takes one step with every parameter of `bucket`, part by part.

    Args:
      bucket: parameters that have gradients.
      states: their states, bases up to date.
      gate: None, or a 0-d bool on the bucket's device: where false, nothing changes.
    """
    for slot, state in zip(bucket.slots, states, strict=True):
        with only_if(gate, [slot.weight, *(value for value in state.values() if isinstance(value, Tensor))]):
            state["step"] += 1
            # On the host the count is a number; behind a gate it stays where it is, in double for the powers.
            step = state["step"].item() if gate is None else state["step"].double()
            _write(slot, bucket, _direction(slot, state, bucket, step), step)


def _direction(slot: Slot, state: State, bucket: Bucket, step: float | Tensor) -> Direction | None:
    """What the parts make of the gradient; None where it has been zero so far and names no subspace yet."""
    parts, space = bucket.parts, bucket.space
    bases = parts.bases(slot, state)
    if slot.geometry is not None and not bases:
        return None
    grad = slot.matrix().to(slot.work)
    if bucket.maximize:
        grad = -grad
    low = space.down(grad, bases)
    moments = parts.moments(slot, state)
    direction = parts.rule.update(low, moments, step)
    parts.hold_moments(slot, state, moments, bucket.draw(slot, step))
    return bucket.residual.complete(grad, low, direction, lambda d: space.up(d, bases), state)


def _write(slot: Slot, bucket: Bucket, direction: Direction | None, step: float | Tensor) -> None:
    """W <- (1 - lr weight_decay) W - lr direction, in the working precision and rounded once.

    The only place where a weight changes or decays.
    """
    param = slot.weight
    weight = param.to(slot.work)  # the same tensor unless it is half precision
    if bucket.weight_decay != 0:
        weight.mul_(1 - bucket.lr * bucket.weight_decay)
    if direction is not None:
        if direction.numerator.shape != param.shape:  # a matrix, of a weight with more dimensions
            direction = direction.reshaped(param.shape)
        direction.subtract_from_(weight, bucket.lr)
    if weight is not param:
        param.copy_(_rounded(weight, slot, bucket, step))


def _rounded(weight: Tensor, slot: Slot, bucket: Bucket, step: float | Tensor) -> Tensor:
    """What a half-precision parameter takes over: `weight`, to be rounded to nearest, or rounded without bias."""
    if bucket.rounding == "nearest" or slot.weight.dtype != torch.bfloat16:
        return weight
    draw, rounded = bucket.draw(slot, step), torch.empty(weight.shape, dtype=torch.bfloat16, device=weight.device)
    round_stochastic(rounded.view(1, -1), weight.reshape(1, -1), seed=draw.seed, step=draw.step)
    return rounded


def open_state(slot: Slot, parts: Parts) -> State:
    """The state of a parameter before its first step; a projected one gets moments with its first basis."""
    step = torch.zeros((), dtype=torch.float32, device=slot.param.device)
    state: State = {"format": FORMAT, "step": step}
    if slot.geometry is None:
        parts.hold_moments(slot, state, _zero_moments(slot, parts), NO_DRAW)
    return state


def find(slots: Sequence[Slot], states: Sequence[State], parts: Parts, seed: int) -> list[Bases]:
    """New bases for the gradients of `slots`; empty for one of zeros, which names no subspace.

    Raises:
      RuntimeError: the projector could not find one.
    """
    entries = list(zip(slots, states, strict=True))
    live = [i for i, slot in enumerate(slots) if bool(slot.grad.any())]
    try:
        bases = parts.projector.find([_query(*entries[i], parts, seed) for i in live])
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        names = ", ".join(f"`{slots[i].name}` {tuple(slots[i].param.shape)}" for i in live)
        raise RuntimeError(
            f"step: the gradient of {names} must have an SVD that converges, "
            f"got: {error}; nothing was changed, consider another projector"
        ) from error
    found: list[Bases] = [{} for _ in slots]
    for i, basis in zip(live, bases, strict=True):
        found[i] = basis
    return found


def _query(slot: Slot, state: State, parts: Parts, seed: int) -> Query:
    position = mix_seed(seed, slot.index, state.get("proj.refreshes", 0))
    return Query(slot.matrix(), cast(Geometry, slot.geometry), parts.bases(slot, state), position)


def adopt(bucket: Bucket, slot: Slot, state: State, found: Bases) -> None:
    """Puts the bases `found` in the place of those held and carries the moments over."""
    parts, geometry = bucket.parts, cast(Geometry, slot.geometry)
    held, step = parts.bases(slot, state), int(state["step"])
    if held:
        kept = parts.moments(slot, state)
        moments = parts.transport.carry(kept, parts.projector.turn(held, found), parts.rule, step)
    else:
        kept, moments = {}, _zero_moments(slot, parts)
    if moments is not kept:
        parts.hold_moments(slot, state, moments, bucket.draw(slot, step))
    for key, side, _ in geometry.bases():
        parts.basis_codec.encode(state, key, found[side])
    state["proj.side"], state["proj.rank"] = int(geometry.side), geometry.rank
    state["proj.refreshes"], state["proj.last_refresh"] = state.get("proj.refreshes", 0) + 1, step
    state["proj.captured"] = _captured(slot, state, parts)


def _captured(slot: Slot, state: State, parts: Parts) -> Tensor:
    """|R|_F^2 / |G|_F^2 of the gradient in its new basis: 0-d float32 in [0, 1]."""
    grad = _near_one(slot.matrix().to(slot.work))
    low = parts.projector.down(grad, parts.bases(slot, state))
    share = _frobenius(low) / _frobenius(grad)
    return share.square().clamp(max=1).float()  # rounding may put a whole share above 1


def _near_one(matrix: Tensor) -> Tensor:
    """`matrix` times the power of two that keeps its products from overflow and underflow; itself where none is needed.

    Reads its largest entry: a step that refreshes waits for an accelerator anyway.
    """
    exponent = frexp(float(torch.linalg.vector_norm(matrix, inf)))[1]
    if abs(exponent) <= 32:
        return matrix
    half = exponent // 2  # in two factors, each of which the dtype has
    return matrix * 2.0**-half * 2.0 ** (half - exponent)


def _frobenius(matrix: Tensor) -> Tensor:
    """The norm by rows first: torch splits one long reduction by the number of threads, which shows in the bits."""
    norm: Tensor = torch.linalg.vector_norm(torch.linalg.vector_norm(matrix, dim=1))
    return norm


def _zero_moments(slot: Slot, parts: Parts) -> Moments:
    zeros = torch.zeros(slot.low_shape, dtype=slot.work, device=slot.param.device)
    return dict.fromkeys(parts.rule.moments, zeros)

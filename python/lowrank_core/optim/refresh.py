"""Finding subspaces, and adopting them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor

from lowrank_core.memory.geometry import Geometry
from lowrank_core.memory.storage import stored
from lowrank_core.optim.bucket import Bucket
from lowrank_core.optim.dtypes import name_of
from lowrank_core.optim.parts.codecs import decoded, encode
from lowrank_core.optim.parts.products import near_one
from lowrank_core.optim.parts.projectors import Found, Query
from lowrank_core.optim.parts.rules import Moments, Turn, layout_of
from lowrank_core.optim.parts.subspaces import Subspace
from lowrank_core.optim.slots import Slot, State
from lowrank_core.optim.states import open_state


def signal_of(bucket: Bucket, grad: Tensor, state: State) -> Tensor:
    """The matrix that is projected, which the residual makes of the gradient; in the dtype of `grad`."""
    return bucket.parts.residual.enter(signed(bucket, grad), state)


def signed(bucket: Bucket, grad: Tensor) -> Tensor:
    """The gradient of what is minimized."""
    return -grad if bucket.maximize else grad


def find(bucket: Bucket, slots: Sequence[Slot], grads: Sequence[Tensor], states: Sequence[State]) -> list[Found | None]:
    """New subspaces for the gradients of `slots`; None for a gradient of zeros, which names none.

    Raises:
      RuntimeError: the projector could not find one.
    """
    signals = [signal_of(bucket, grad, state) for grad, state in zip(grads, states, strict=True)]
    live = [i for i, signal in enumerate(signals) if bool(signal[:1].any()) or bool(signal.any())]
    try:
        subspaces = bucket.parts.projector.find(
            [query_of(bucket, slots[i], signals[i], states[i], int(states[i]["step"])) for i in live]
        )
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        names = ", ".join(f"`{slots[i].name}` {slots[i].shape}" for i in live)
        raise RuntimeError(
            f"step: the gradient of {names} must have an SVD that converges, "
            f"got: {error}; nothing was changed, consider another projector"
        ) from error
    found: list[Found | None] = [None for _ in slots]
    for i, subspace in zip(live, subspaces, strict=True):
        found[i] = subspace
    return found


def adopt(bucket: Bucket, slot: Slot, grad: Tensor, state: State, found: Found | None) -> None:
    """Replaces the subspace held by the one `found`, and carries the moments over."""
    parts, step = bucket.parts, int(state["step"])
    if found is None:
        parts.schedule.looked(state, step, None)
        return
    turn = carry(bucket, slot, state, found.subspace, step)
    state["proj.refreshes"], state["proj.last_refresh"] = state["proj.refreshes"] + 1, step
    parts.schedule.looked(state, step, turn)
    hold(bucket, slot, state, found.subspace)  # last: the turn reads the one before
    if "proj.captured" in state:
        as_stored = parts.projector.held(slot, state)
        state["proj.captured"].copy_(captured(as_stored, signal_of(bucket, grad, state).to(slot.work)))


def select(
    bucket: Bucket, slot: Slot, signal: Tensor, state: State, step: float | Tensor
) -> tuple[Subspace, Tensor, Tensor | None]:
    """Chooses a subspace for a step, after `step` finished ones, and adopts it.

    Returns it, `signal` in it, and what the residual wants to know of the one that was left.

    It waits for no device.
    """
    query, left = query_of(bucket, slot, signal, state, step), None
    (found,) = bucket.parts.projector.find([query])
    if found.subspace is not query.held:
        if query.held is not None:
            left = bucket.parts.residual.leave(query.held, query.moments)
        take(bucket, slot, state, found.subspace, step)
    return found.subspace, found.subspace.down(signal) if found.low is None else found.low, left


def take(bucket: Bucket, slot: Slot, state: State, subspace: Subspace, step: float | Tensor) -> None:
    """Adopts a `subspace` that was chosen for a step, after `step` finished ones.

    After the first step it changes no plain number, so that a gate can undo it.
    """
    carry(bucket, slot, state, subspace, step)
    hold(bucket, slot, state, subspace)
    state["proj.refreshes"] = 1


def query_of(bucket: Bucket, slot: Slot, signal: Tensor, state: State, step: float | Tensor) -> Query:
    """What a projector is asked with, after `step` finished steps."""
    refreshes = state["proj.refreshes"]
    held = bucket.parts.projector.held(slot, state) if refreshes else None
    place = cast(Geometry, slot.geometry)
    moments = partial(_moments, bucket, slot, state) if refreshes else dict
    return Query(signal, place, held, slot.search_seed(refreshes), moments, step, refreshes, slot.seed, slot.turn)


def _moments(bucket: Bucket, slot: Slot, state: State) -> Moments:
    fields = layout_of(bucket.parts.rule, slot.where(state))
    return decoded(bucket.parts.moment_codec, fields, state, slot.work)


def carry(bucket: Bucket, slot: Slot, state: State, subspace: Subspace, step: float | Tensor) -> Turn | None:
    """Carries the moments after `step` finished steps into `subspace`.

    Returns the turn from the subspace held, if there is one.
    """
    parts = bucket.parts
    if state["proj.refreshes"] == 0:
        if subspace.rank != state["proj.rank"]:
            _restart(bucket, slot, state, subspace)
        return None
    fields, kept = layout_of(parts.rule, slot.where(state)), _moments(bucket, slot, state)
    turn = subspace.turn_from(parts.projector.held(slot, state))
    for watch in bucket.watches:
        watch.turned(slot, turn.overlap())
    if parts.transport.restarts:
        _restart(bucket, slot, state, subspace)
        return turn
    moments = parts.transport.carry(kept, turn, parts.rule, step)
    if moments is not kept:
        encode(parts.moment_codec, fields, state, moments, slot.draw(step))
    return turn


def _restart(bucket: Bucket, slot: Slot, state: State, subspace: Subspace) -> None:
    """Opens the moments anew, in the shapes that they have in `subspace`."""
    where = slot.where(state).at(subspace.rank)
    fields = stored(layout_of(bucket.parts.rule, where), bucket.parts.moment_codec, name_of(slot.weight.dtype))
    state.update(open_state(fields, slot.weight.device))


def hold(bucket: Bucket, slot: Slot, state: State, subspace: Subspace) -> None:
    """Replaces the subspace in `state`."""
    state["proj.rank"] = subspace.rank
    bucket.parts.projector.hold(slot, state, subspace)


def captured(subspace: Subspace, grad: Tensor) -> Tensor:
    """|R|_F^2 / |G|_F^2 of a gradient in the working dtype: 0-d float32 in [0, 1]."""
    whole = _frobenius(grad)
    if not 2.0**-32 * math.sqrt(grad.numel()) <= float(whole) < 2.0**31:  # else `near_one` would change nothing
        grad, _ = near_one(grad)
        whole = _frobenius(grad)
    share = _frobenius(subspace.down(grad)) / whole
    return share.square().clamp(max=1).float()  # rounding may put a whole share above 1


def _frobenius(matrix: Tensor) -> Tensor:
    """The norm by rows first: torch splits one long reduction by the number of threads, which shows in the bits."""
    norm: Tensor = torch.linalg.vector_norm(torch.linalg.vector_norm(matrix, dim=1))
    return norm

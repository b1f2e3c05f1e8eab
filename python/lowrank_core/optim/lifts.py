"""Lists of weights with a basis on one side, as kernels step them: the bases held, and the way back into matrices."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from lowrank_core.memory.geometry import Side
from lowrank_core.ops.arrays import resolve_precision
from lowrank_core.ops.subspace_step.step import step_list
from lowrank_core.optim.bucket import Bucket
from lowrank_core.optim.draft import Draft
from lowrank_core.optim.parts.projectors import Projector
from lowrank_core.optim.parts.projectors.gaussian import Gaussian
from lowrank_core.optim.parts.projectors.packed import PackedBasis
from lowrank_core.optim.parts.residuals.drop import kernel_of
from lowrank_core.optim.slots import Slot, State

_MADE_SHARE = 0.01  # of the weights' elements, or
_MADE_IN_ANY_CASE = 1 << 20  # elements: what bases that are drawn or decoded may have at the same time; one always is


def lift_steps(bucket: Bucket, draft: Draft, bases: list[Tensor], steps: list[int]) -> None:
    """W <- (1 - lr weight_decay) W - lr scale P N for the directions N in `draft.low`."""
    params = [matrix_of(slot) for slot in draft.slots]
    lift(
        params, draft.low or [], bases, rights_of(draft.slots), steps=steps, seeds=draft.seeds(bucket.draws),
        lr=bucket.lr, weight_decay=bucket.weight_decay, stochastic=bucket.rounding == "stochastic",
        **(bucket.parts.residual.kernel() or {}),
    )  # fmt: skip
    torch.autograd.graph.increment_version(params)


def subtract_lifted(
    targets: list[Tensor], lows: list[Tensor], bases: list[Tensor], right: list[bool], factor: float
) -> None:
    """target <- target - factor P X, or X P^T on the right, for the `lows` X. Nothing of its size is made."""
    options = {**kernel_of("drop", factor), "weight_decay": 0.0, "stochastic": False}
    lift(targets, lows, bases, right, steps=[1] * len(lows), seeds=[0] * len(lows), lr=1.0, **options)


def lift(
    params: list[Tensor],
    lows: list[Tensor],
    bases: list[Tensor],
    right: list[bool],
    *,
    steps: list[int],
    seeds: list[int],
    **options: Any,
) -> None:
    """`step_list` with the directions `lows`, which are of one dtype."""
    unread = [zero.expand(param.shape) for zero, param in zip(zeros(lows), params, strict=True)]  # gradients
    step_list(
        params, unread, bases, [], [], [], [], [], right, steps, seeds, low=lows, maximize=False, rule="given",
        betas=(0.0, 0.0), eps=0.0, precision=resolve_precision("step", None), **options,
    )  # fmt: skip


def zeros(likes: list[Tensor]) -> list[Tensor]:
    """For each of some tensors of one dtype the same 0-d one, for a kernel that wants to know a shape alone."""
    return [likes[0].new_zeros(())] * len(likes) if likes else []


def matrix_of(slot: Slot) -> Tensor:
    """The weight as the matrix that is stepped, in its own memory."""
    where, weight = slot.geometry, slot.weight
    return weight if where is None or weight.ndim == 2 else weight.view(where.rows, where.cols)


def rights_of(slots: list[Slot]) -> list[bool]:
    """Whether the basis of each is on the right."""
    return [slot.geometry is not None and slot.geometry.side == Side.RIGHT for slot in slots]


def together(bucket: Bucket, draft: Draft) -> int:
    """How many weights a call takes: all of them, unless their bases are made for it and are dense only then."""
    count = len(draft.slots)
    if not isinstance(bucket.parts.projector, (PackedBasis, Gaussian)):
        return count
    places = [slot.geometry for slot in draft.slots if slot.geometry is not None]
    dense = sum(prod(shape) for where in places for shape in where.basis_shapes.values())
    allowed = max(_MADE_SHARE * sum(where.rows * where.cols for where in places), _MADE_IN_ANY_CASE)
    return max(1, int(count * allowed / max(dense, 1)))


def bases_held(projector: Projector, slots: Sequence[Slot], states: Sequence[State]) -> list[Tensor]:
    """The bases held, decoded or drawn in one call where they are not stored as they are."""
    if isinstance(projector, (PackedBasis, Gaussian)):
        return projector.stored_bases(slots, states)
    return [projector.stored_basis(slot, state) for slot, state in zip(slots, states, strict=True)]

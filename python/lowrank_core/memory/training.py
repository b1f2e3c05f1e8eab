"""Bytes that training holds besides activations: weights, gradients and state. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

from lowrank_core.memory.estimate import Counted, Keys, Weight, adamw_bytes, all_bytes, facade_bytes, place_of
from lowrank_core.memory.gradients import Gradient, GradientBytes, Way, gradient_bytes
from lowrank_core.memory.lisa import ACTIVE, lisa_bytes
from lowrank_core.memory.methods import FACADES, METHODS
from lowrank_core.memory.storage import ITEM_SIZES, STORAGES, WORK, Field, Role, layout_bytes, work_dtype

SKETCHED = ("flora",)  # the methods of which `fused_backward(compressed=True)` adds gradients up in sketches


class TrainingBytes(NamedTuple):
    """Bytes of one optimizer's training."""

    weights: int
    gradients: int  # at step() of ordinary training
    state: int
    passing: int  # the largest gradient: all that is there at a time where each weight steps inside backward
    # What `fused_backward` holds where backward passes are added up; None where it refuses that.
    added: GradientBytes | None
    compressed: GradientBytes | None  # what it holds with `compressed=True`, likewise


def training_bytes(
    optimizer: str, weights: Sequence[Counted], keys: Sequence[Keys], own: Mapping[str, Any]
) -> TrainingBytes:
    """The bytes with "adamw", one of `METHODS` or of `FACADES`.

    Args:
      weights: all that are trained.
      keys: of each of them, for one of `METHODS`.
      own: keys for one of `FACADES`.
    """
    stored = sum(n * weight_bytes(weight) for _, weight, n in weights)
    if optimizer in METHODS:
        planned = gradient_bytes(_gradients(optimizer, weights, keys))
        adds = METHODS[optimizer].way is not Way.AT_ONCE
        sketches = gradient_bytes(_gradients(optimizer, weights, keys, True)) if optimizer in SKETCHED else None
        state = all_bytes(optimizer, weights, keys)
        return TrainingBytes(stored, planned.ordinary, state, planned.passing, planned if adds else None, sketches)
    sizes = [(name, gradient_size(weight), n) for name, weight, n in weights]
    largest = max((size for _, size, _ in sizes), default=0)
    if optimizer in FACADES:  # the layers at rest have no gradients
        trained = lisa_bytes("estimate", sizes, own.get("active", ACTIVE))
        return TrainingBytes(stored, trained, facade_bytes(weights, own), largest, None, None)
    ordinary = sum(n * size for _, size, n in sizes)
    return TrainingBytes(stored, ordinary, sum(n * adamw_bytes(w) for _, w, n in weights), largest, None, None)


def weight_bytes(weight: Weight) -> int:
    """Bytes of a weight as it is stored."""
    if not weight.int8:
        return gradient_size(weight)
    return layout_bytes(STORAGES["int8"].layout("weight", Field(weight.shape, WORK, Role.MOMENT), weight.dtype))


def gradient_size(weight: Weight) -> int:
    """Bytes of the gradient of a weight, which has the weight's dtype."""
    return prod(weight.shape) * ITEM_SIZES[weight.dtype]


def _gradients(
    optimizer: str, weights: Sequence[Counted], keys: Iterable[Keys], compressed: bool = False
) -> Iterator[Gradient]:
    way = Way.SKETCH if compressed else METHODS[optimizer].way
    for (_, weight, count), own in zip(weights, keys, strict=True):
        where = place_of(optimizer, weight, own)
        taken = Way.WHOLE if where is None else way
        due = Way.WHOLE if way is Way.SUBSPACE else taken
        work = ITEM_SIZES[work_dtype(weight.dtype)]
        yield Gradient(gradient_size(weight), work, where, taken, due, count, weight.stack)

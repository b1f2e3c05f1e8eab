"""What a device decides: whether it has kernels, and whether the host waits to know that gradients are finite."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lowrank_core.ops.subspace_step.plain import nonfinite_list

MAX_DIMENSIONS = 8  # of an array that kernels take

_taken_away = False


def deferred(device: torch.device) -> bool:
    """True if reading a number makes the host wait, so that a verdict is better left on the device."""
    return device.type == "cuda"


def has_kernels(device: torch.device) -> bool:
    """True where the package's own kernels compute; on the meta device, where weights have yet to be loaded, too.

    Everywhere else `parts/products.py` takes their place.
    """
    return device.type in ("cpu", "meta") and not _taken_away


def can_draw(device: torch.device) -> bool:
    """True where moments can be rounded at random: there are kernels for it, and the host knows the step's number."""
    return has_kernels(device) and not deferred(device)


@contextmanager
def without_kernels() -> Iterator[None]:
    """Every device as one for which there are none: what other devices compute, on the CPU."""
    global _taken_away
    before, _taken_away = _taken_away, True
    try:
        yield
    finally:
        _taken_away = before


def stays_on_device(number: object) -> bool:
    """True for a tensor on an accelerator: reading it would make the host wait."""
    return isinstance(number, Tensor) and deferred(number.device)


def is_finite(grad: Tensor) -> bool:
    """True if every entry is finite, in one pass with no temporary of that size; read on the host."""
    # inf and nan absorb every addend: a finite sum proves all entries finite, another one may be overflow.
    return math.isfinite(grad.sum().item()) or bool(grad.isfinite().all())


def nonfinite(grads: list[Tensor]) -> list[int]:
    """The positions of the gradients with inf or nan; read on the host."""
    wrong = nonfinite_list(grads) if all(map(has_kernels, {grad.device for grad in grads})) else None
    if wrong is not None:
        return wrong
    dense = [i for i, grad in enumerate(grads) if has_kernels(grad.device) and is_run(grad)]
    found = nonfinite_list([grads[i] for i in dense])
    if found is None:
        dense, found = [], []
    others = set(range(len(grads))).difference(dense)
    return sorted([*(dense[i] for i in found), *(i for i in others if not is_finite(grads[i]))])


def is_run(tensor: Tensor) -> bool:
    """True if its elements follow each other in memory, in an array that kernels take."""
    return tensor.is_contiguous() and tensor.dim() <= MAX_DIMENSIONS


def all_finite(grads: list[Tensor]) -> Tensor:
    """0-d bool on the gradients' device: True if every entry of every gradient is finite. Does not wait."""
    # The largest magnitude is exact in any dtype, where a sum might overflow; NaN is the largest of all.
    largest = [torch.linalg.vector_norm(grad, math.inf).isfinite() for grad in grads if grad.numel()]
    return torch.stack(largest).all() if largest else torch.ones((), dtype=torch.bool, device=grads[0].device)


@contextmanager
def only_if(gate: Tensor | None, tensors: list[Tensor]) -> Iterator[None]:
    """Runs the body. If `gate` (0-d bool) is false, `tensors` get their old values back. None means true.

    Costs a copy of `tensors` for as long as the body runs; never waits for the device.
    """
    if gate is None:
        yield
        return
    before = [tensor.clone() for tensor in tensors]
    yield
    for tensor, old in zip(tensors, before, strict=True):
        torch.where(gate, tensor, old, out=tensor)

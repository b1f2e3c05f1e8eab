"""Which devices have compiled kernels. On the others `parts/products.py` takes their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lowrank_core.optim import guard

_taken_away = False


def has_kernels(device: torch.device) -> bool:
    """True on devices where the package's own kernels compute, and on the meta device, whose weights are yet to be
    loaded."""
    return device.type in ("cpu", "meta") and not _taken_away


def can_draw(device: torch.device) -> bool:
    """True if moments can be rounded at random: there are kernels for it, and the host knows the step's number."""
    return has_kernels(device) and not guard.deferred(device)


@contextmanager
def without_kernels() -> Iterator[None]:
    """Treats every device as one without kernels: the CPU then computes what other devices compute."""
    global _taken_away
    before, _taken_away = _taken_away, True
    try:
        yield
    finally:
        _taken_away = before

"""Where the compiled kernels are. Everywhere else `parts/products.py` takes their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lowrank_core.optim import guard

_taken_away = False


def has_kernels(device: torch.device) -> bool:
    """True where the package's own kernels compute; on the meta device, where weights have yet to be loaded, too."""
    return device.type in ("cpu", "meta") and not _taken_away


def can_draw(device: torch.device) -> bool:
    """True where moments can be rounded at random: there are kernels for it, and the host knows the step's number."""
    return has_kernels(device) and not guard.deferred(device)


@contextmanager
def without_kernels() -> Iterator[None]:
    """Every device as one for which there are none: what other devices compute, on the CPU."""
    global _taken_away
    before, _taken_away = _taken_away, True
    try:
        yield
    finally:
        _taken_away = before

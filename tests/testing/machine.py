"""The state of the machine that a test may change, and puts back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lowrank_core import _core
from lowrank_core.ops.device import torch_precision


@contextmanager
def threads(count: int) -> Iterator[None]:
    """`count` threads for torch and for the kernels, which share one pool."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    _core.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _core.set_num_threads(before)


@contextmanager
def isa(level: str) -> Iterator[None]:
    """One instruction-set level."""
    before = _core.isa()
    _core.set_isa(level)
    try:
        yield
    finally:
        _core.set_isa(before)


matmul_precision = torch_precision  # torch's setting, which `precision=None` follows

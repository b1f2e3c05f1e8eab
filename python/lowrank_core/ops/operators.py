"""The way from a public function to torch's operators, which are registered when the first tensor takes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lowrank_core.ops.arrays import is_torch


def torch_ops() -> Any:
    """`torch.ops.lowrank_core`, with every operator registered."""
    from lowrank_core.ops import torch_registry

    return torch_registry.ops


def without_derivative(op: str, arrays: Sequence[Any], compute: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
    """`compute()` of a plain function, which says that it has no derivative where torch asks for one."""
    given = [a for a in arrays if is_torch(a)]
    if not given:
        return compute()
    from lowrank_core.ops import torch_autograd

    return torch_autograd.call_constant(op, given, compute)

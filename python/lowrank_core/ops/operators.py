"""How public functions call torch's operators, which are registered when the first tensor arrives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lowrank_core.ops.arrays import is_torch
from lowrank_core.ops.declare import Op


def torch_ops() -> Any:
    """`torch.ops.lowrank_core`, with every operator registered."""
    from lowrank_core.ops import torch_registry

    return torch_registry.ops


def call(op: Op, *args: Any, **options: Any) -> Any:
    """Calls the operator `op` for arrays of any library. Its first argument is an array or a list of arrays."""
    first = args[0]
    if isinstance(first, list):
        first = first[0] if first else None
    if not is_torch(first):
        return op.run(*args, **options)
    op.check(*args, **options)  # before torch's schema, which refuses in its own words
    return getattr(torch_ops(), op.name)(*args, **options)


def flag(*_: Any, **__: Any) -> Any:
    """The outputs of an operator that returns whether it did something."""
    import torch

    return torch.empty((), dtype=torch.bool, device="cpu")


def without_derivative(op: str, arrays: Sequence[Any], compute: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
    """The result of `compute()`, for a plain function without a derivative, which raises if torch asks for one."""
    given = [a for a in arrays if is_torch(a)]
    if not given:
        return compute()
    from lowrank_core.ops import torch_autograd

    return torch_autograd.call_constant(op, given, compute)

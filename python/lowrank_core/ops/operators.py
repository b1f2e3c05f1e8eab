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


def dispatches_nothing(tensors: Sequence[Any]) -> bool:
    """Whether torch's dispatcher would do no more with an operator of these arguments than call its kernel for the CPU.

    So it is where all are ordinary tensors in the CPU's memory and nobody looks on: no graph is recorded, and there is
    no mode, transform, tracer or profiler.
    """
    import torch
    from torch.autograd import forward_ad

    if torch.compiler.is_compiling() or torch._C._get_tracing_state() or torch._C._autograd._profiler_enabled():
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._is_torch_function_mode_enabled():
        return False
    if torch._C._are_functorch_transforms_active() or getattr(forward_ad, "_current_level", 0) >= 0:
        return False
    records = torch.is_grad_enabled()
    ordinary = (torch.Tensor, torch.nn.Parameter)
    return all(type(t) in ordinary and t.is_cpu and not (records and t.requires_grad) for t in tensors)


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

"""The operators under torch.vmap: one call if they take leading dimensions, else one for each member."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lowrank_core.ops.declare import Op
from lowrank_core.ops.torch_autograd import tensors

Dims = Sequence[Any]
"""For each positional argument the mapped dimension, None if there is none; a list for a list of tensors."""


def batching_rule(op: Op, overload: Any, mapped: Callable[..., Any] | None) -> Callable[..., Any]:
    """The rule of an operator, as torch.library.register_vmap takes it."""
    names = [a.name for a in overload._schema.arguments if not a.kwarg_only]
    leading = [name in op.leading for name in names]

    def rule(info: Any, in_dims: Dims, *args: Any, **options: Any) -> tuple[Any, Any]:
        if op.mutates:
            raise NotImplementedError(
                f"{op.name}: writes to its arguments, which torch.vmap cannot map; call it for each member"
            )
        out = mapped(overload, in_dims, args, options) if mapped else None
        if out is None and all(takes or not _is_mapped(dim) for takes, dim in zip(leading, in_dims, strict=False)):
            led = [
                _led(a, dim, info.batch_size) if takes and isinstance(a, Tensor) else a
                for a, dim, takes in zip(args, in_dims, leading, strict=False)
            ]
            out = overload(*led, **options)
        if out is None:
            out = _each(overload, info.batch_size, in_dims, args, options)
        return out, 0 if isinstance(out, Tensor) else (0,) * len(out)

    return rule


def _is_mapped(dim: Any) -> bool:
    return any(d is not None for d in dim) if isinstance(dim, (list, tuple)) else dim is not None


def _led(a: Tensor, dim: int | None, count: int) -> Tensor:
    """The mapped dimension first; a view."""
    return a.expand(count, *a.shape) if dim is None else a.movedim(dim, 0)


def _each(overload: Any, count: int, in_dims: Dims, args: Sequence[Any], options: dict[str, Any]) -> Any:
    """Member by member."""
    if count == 0:
        return _none(overload, in_dims, args, options)
    found = [
        overload(*(_member(a, dim, i) for a, dim in zip(args, in_dims, strict=True)), **options) for i in range(count)
    ]
    if isinstance(found[0], Tensor):
        return torch.stack(found)
    return tuple(torch.stack(parts) for parts in zip(*found, strict=True))


def _member(a: Any, dim: Any, i: int) -> Any:
    if isinstance(dim, (list, tuple)):
        return [_member(item, d, i) for item, d in zip(a, dim, strict=True)]
    return a if dim is None else a.select(dim, i).contiguous()


def _none(overload: Any, in_dims: Dims, args: Sequence[Any], options: dict[str, Any]) -> Any:
    """The result for no members: its shapes and dtypes come from the fake kernel."""

    def shaped(a: Any, dim: Any) -> Any:
        if isinstance(a, (list, tuple)):
            dims = dim if isinstance(dim, (list, tuple)) else [None] * len(a)
            return [shaped(item, d) for item, d in zip(a, dims, strict=True)]
        if not isinstance(a, Tensor):
            return a
        shape = a.shape if dim is None else (*a.shape[:dim], *a.shape[dim + 1 :])
        return a.new_empty(shape, device="meta")

    out = overload(*(shaped(a, dim) for a, dim in zip(args, in_dims, strict=True)), **options)
    device = next(tensors(args)).device
    made = [
        torch.empty((0, *o.shape), dtype=o.dtype, device=device) for o in ((out,) if isinstance(out, Tensor) else out)
    ]
    return made[0] if isinstance(out, Tensor) else tuple(made)

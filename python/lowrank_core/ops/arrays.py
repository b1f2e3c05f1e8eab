"""What the operators need to know about NumPy, PyTorch and CuPy arrays: kind, dtype, device, allocation."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from lowrank_core import _core

Array: TypeAlias = Any
"""A `numpy.ndarray`, `torch.Tensor` or `cupy.ndarray`; a function returns the kind it was given."""

MAX_SEED = 2**63 - 1
_ON_HOST = "must be in host memory"  # what the binding of a kernel of the host alone says
_FLOATS = ("float32", "float64", "bfloat16", "float16")


def is_torch(a: Array) -> bool:
    """True for a torch tensor; never imports torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(a, torch.Tensor)


def is_cupy(a: Array) -> bool:
    """True for a CuPy array; never imports cupy."""
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(a, cupy.ndarray)


def dtype_name(a: Array) -> str:
    """The dtype without its library: "float32", "bfloat16", ..."""
    return str(a.dtype).removeprefix("torch.")


def empty(like: Array, shape: tuple[int, ...], dtype: str) -> Array:
    """Uninitialised array of the kind and on the device of `like`."""
    if is_torch(like):
        torch = sys.modules["torch"]
        return like.new_empty(shape, dtype=getattr(torch, dtype))
    if is_cupy(like):
        return sys.modules["cupy"].empty(shape, dtype=dtype)
    return np.empty(shape, dtype=dtype)


def compact(a: Array) -> Array:
    """A copy that holds no more memory than it needs."""
    return a.clone() if is_torch(a) else a.copy()


def converted(x: Array, like: Array) -> Array:
    """The matrix `x` in the dtype of `like`, rounded once, whatever the caller's floating-point mode."""
    out = empty(like, tuple(like.shape), dtype_name(like))
    _core.convert(out, x)
    return out


def transpose(a: Array) -> Array:
    """The last two dimensions swapped, as a view."""
    return a.mT if is_torch(a) else a.swapaxes(-1, -2)


def factor_dtype(a: Array) -> str:
    """dtype of the factors of `a`: orthogonality does not survive a half-precision rounding."""
    return "float64" if dtype_name(a) == "float64" else "float32"


def check_array(op: str, argument: str, a: Array, *, ndim: int = 2) -> None:
    """Refuses anything but a floating-point array of at least `ndim` dimensions."""
    if not (isinstance(a, np.ndarray) or is_torch(a) or is_cupy(a)):
        raise TypeError(
            f"{op}: `{argument}` must be a numpy.ndarray, torch.Tensor or cupy.ndarray, got {type(a).__name__}"
        )
    check_dense(op, argument, a)
    allowed = _FLOATS if is_torch(a) else ("float32", "float64")
    if dtype_name(a) not in allowed:
        raise TypeError(f"{op}: `{argument}` must be {' or '.join(allowed)}, got {dtype_name(a)}")
    if a.ndim < ndim:
        raise ValueError(f"{op}: `{argument}` must have at least {ndim} dimensions, got shape {list(a.shape)}")


def check_dense(op: str, argument: str, a: Array) -> None:
    """Refuses anything but a strided array in memory: other layouts of torch, tensors that only stand for others, and
    another byte order than the machine's.
    """
    if isinstance(a, np.ndarray):
        if not a.dtype.isnative:
            way = "call `.astype(x.dtype.newbyteorder('='))`"
            raise ValueError(f"{op}: `{argument}` must be in the machine's byte order, got {a.dtype}; {way}")
        return
    if not is_torch(a):
        return
    torch = sys.modules["torch"]
    if a.layout is not torch.strided or a.is_nested:
        kind = "a nested tensor" if a.is_nested else f"layout {a.layout}"
        raise TypeError(f"{op}: `{argument}` must be an ordinary dense tensor, got {kind}; call `.to_dense()`")
    if type(a) in (torch.Tensor, torch.nn.Parameter) or torch.compiler.is_compiling() or _stands_in(a):
        return
    rule = _core.array_refusal(a, on_host=False)  # of a subclass, which may hold nothing
    if rule and a.device.type != "meta":
        raise TypeError(f"{op}: `{argument}` {rule}")


def _stands_in(a: Array) -> bool:
    """True for the tensors without memory that torch traces with."""
    return type(a).__module__.startswith("torch._subclasses")


def check_memory(op: str, argument: str, a: Array) -> None:
    """Refuses tensors that have only a shape, for an operator whose result depends on what they hold."""
    if not is_torch(a):
        return
    if a.device.type == "meta" or (_stands_in(a) and not sys.modules["torch"].compiler.is_compiling()):
        raise ValueError(f"{op}: `{argument}` must hold memory of its own, got a tensor that has only a shape")


def check_in_place(op: str, argument: str, a: Array) -> None:
    """Refuses a view that torch negates when it is read: a change would go to a copy of it."""
    if is_torch(a) and not sys.modules["torch"].compiler.is_compiling() and a.is_neg():
        raise ValueError(
            f"{op}: `{argument}` must hold its values, got a view that is to be negated when it is read; "
            "call `.resolve_neg()`"
        )


def check_same(op: str, argument: str, a: Array, like: Array) -> None:
    """Refuses arrays of different libraries or devices."""
    if is_torch(a) != is_torch(like) or is_cupy(a) != is_cupy(like):
        raise TypeError(f"{op}: `{argument}` must be of the same library as the other arrays, got {type(a).__name__}")
    if is_torch(a) and a.device != like.device:
        raise ValueError(f"{op}: `{argument}` must be on {like.device}, got {a.device}")


def check_int(op: str, argument: str, value: int, low: int, high: int | None = None, hint: str = "") -> None:
    """Refuses a value outside [low, high]."""
    # torch.compile hands symbolic integers, which are no int but compare like one.
    if isinstance(value, bool) or not (isinstance(value, (int, np.integer)) or is_symbolic(value)):
        raise TypeError(f"{op}: `{argument}` must be an integer, got {value!r}")
    if value < low or (high is not None and value > high):
        bound = f">= {low}" if high is None else f"between {low} and {high}"
        raise ValueError(f"{op}: `{argument}` must be {bound}, got {value}{hint}")


def plain_int(value: Any) -> Any:
    """An integer of NumPy or torch, also one of 0 dimensions, as Python's; anything else as it is, for `check_int`."""
    if type(value) is int or isinstance(value, bool) or getattr(value, "ndim", None) != 0:
        return value
    return operator.index(value) if "int" in str(value.dtype) else value


def plain_ints(*values: Any) -> tuple[Any, ...]:
    """`plain_int` of each."""
    return tuple(plain_int(value) for value in values)


def is_symbolic(value: object) -> bool:
    """True for torch's symbolic integer."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.SymInt)


def are_ordinary(tensors: list[Array]) -> bool:
    """True if all are float tensors of torch's own classes, in host memory that no two elements of one share.

    None is to be negated when it is read. False says nothing: then each is to be looked at.
    """
    return _core.are_ordinary(tensors)


def overlaps_itself(a: Array) -> bool:
    """True if two elements of `a` share memory, as in an expanded array."""
    return _core.overlaps_itself(a)


def call_named(op: str, kernel: Callable[..., Any], *args: Any, arrays: dict[str, Array | None], **options: Any) -> Any:
    """`kernel(*args, **options)`; if it cannot use the memory of one of `arrays`, the error names that array and `op`.

    Raises:
      ValueError: an array without memory of its own, unaligned, read-only, that shares memory with another, ...
    """
    try:
        return kernel(*args, **options)
    except _core.ArrayError as error:
        on_host = _ON_HOST in str(error)  # a kernel that knows GPUs, too, refuses for another reason
        for name, a in arrays.items():
            if a is not None and (rule := _core.array_refusal(a, on_host=on_host)):
                raise type(error)(f"{op}: `{name}` {rule}") from None
        raise type(error)(f"{op}: {str(error).partition(': ')[2]}") from None


def call_finite(
    op: str, kernel: Callable[..., Any], *args: Any, arrays: dict[str, Array | None], **options: Any
) -> Any:
    """`kernel(*args, **options)`; if it meets NaN or infinity, the error names the one of `arrays` that has it.

    Raises:
      ValueError: one of `arrays` is not finite, or a result is not although all of them are.
    """
    try:
        return call_named(op, kernel, *args, arrays=arrays, **options)
    except FloatingPointError:
        given = {name: a for name, a in arrays.items() if a is not None}
        bad = next((name for name, a in given.items() if not _is_finite(a)), None)
        if bad is not None:
            raise ValueError(not_finite(op, bad)) from None
        raise ValueError(
            f"{op}: {', '.join(f'`{name}`' for name in given)} must be small enough for the result to fit its dtype, "
            "got finite numbers that overflowed inside; divide by a power of two and multiply the result, or pass "
            "float64"
        ) from None


def not_finite(op: str, argument: str) -> str:
    """The refusal of an array with NaN or infinity."""
    return f"{op}: `{argument}` must be finite, got NaN or infinity"


def _is_finite(a: Array) -> bool:
    return bool(a.isfinite().all()) if is_torch(a) else bool(np.isfinite(a).all())


def resolve_precision(op: str, precision: str | None) -> str:
    """torch's setting if torch is loaded and `precision` is None, else "highest"."""
    if precision is None:
        torch = sys.modules.get("torch")
        return "highest" if torch is None else str(torch.get_float32_matmul_precision())
    if precision not in ("highest", "high", "medium"):
        raise ValueError(f"{op}: `precision` must be 'highest', 'high', 'medium' or None, got {precision!r}")
    return precision

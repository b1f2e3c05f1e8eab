"""Arrays that are not ordinary memory: what other programs hand over, and a kernel must resolve or refuse."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode


def unaligned(a: np.ndarray) -> np.ndarray:
    """The same values one byte beside where elements of their size begin."""
    memory = np.empty(a.nbytes + 1, np.uint8)
    off = memory[1 - memory.ctypes.data % 2 :][: a.nbytes] if a.itemsize > 1 else memory[: a.nbytes]
    view = off.view(a.dtype).reshape(a.shape)
    view[...] = a
    assert a.size == 0 or view.ctypes.data % a.itemsize
    return view


def unaligned_tensor(a: Tensor) -> Tensor:
    """`unaligned` for torch, which takes such memory from a buffer."""
    memory = bytearray(a.numel() * a.element_size() + 1)
    view = torch.frombuffer(memory, dtype=a.dtype, offset=1).view(a.shape)
    view.copy_(a)
    assert view.data_ptr() % a.element_size()
    return view


def negated(a: Tensor) -> Tensor:
    """The same values as a view of their opposites, to be negated by whoever reads it."""
    view = torch.complex(torch.zeros_like(a), -a).conj().imag
    assert view.is_neg()
    return view


class Wrapper(torch.Tensor):
    """A tensor that stands for another one and holds no memory, as DTensor does."""

    __torch_function__: ClassVar[Any] = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapper:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined, no-any-return]
            cls, inner.shape, dtype=inner.dtype, device=inner.device, requires_grad=inner.requires_grad
        )

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(f"no rule for {function}")


def fake(a: Tensor) -> Tensor:
    """What torch traces with: a shape, a dtype and a device."""
    with FakeTensorMode() as mode:
        return mode.from_tensor(a)


def nested(a: Tensor) -> Tensor:
    """The rows of `a` as tensors of possibly different length."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls them a prototype
        return torch.nested.nested_tensor(list(a))


def quantized(a: Tensor) -> Tensor:
    """Codes of torch's own, which hide behind a dtype."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls them outdated
        return torch.quantize_per_tensor(a, 0.1, 0, torch.qint8)

"""DLPack capsules made by hand, for what no array library exports: byte offsets, missing strides, foreign versions.

The layout is that of the DLPack 1.0 header, stated here once more on purpose.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

CPU, CUDA, METAL = 1, 2, 8
FLOAT = 2


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


_DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = [("tensor", _Tensor), ("manager_ctx", ctypes.c_void_p), ("deleter", _DELETER)]


class _Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", _DELETER),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    ]


_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class HandMade:
    """A producer of one capsule over a float64 array; counts how often its deleter is called.

    Args:
      base: contiguous memory to point into.
      shape, strides: of the tensor, in elements; None: no strides, compact.
      byte_offset: where the tensor starts.
      version: (major, minor), or None for a capsule older than DLPack 1.0.
    """

    def __init__(
        self,
        base: np.ndarray,
        shape: tuple[int, ...],
        strides: tuple[int, ...] | None = None,
        *,
        byte_offset: int = 0,
        version: tuple[int, int] | None = (1, 0),
        device: int = CPU,
        lanes: int = 1,
        bits: int = 64,
    ) -> None:
        self.deleted = 0
        self._base = base
        self._dims = (ctypes.c_int64 * len(shape))(*shape)
        self._steps = None if strides is None else (ctypes.c_int64 * len(strides))(*strides)
        pointer = ctypes.POINTER(ctypes.c_int64)
        steps = pointer() if self._steps is None else ctypes.cast(self._steps, pointer)
        dims = ctypes.cast(self._dims, pointer)
        tensor = _Tensor(
            base.ctypes.data, device, 0, len(shape), FLOAT, bits, lanes, dims, steps, ctypes.c_uint64(byte_offset)
        )
        self._deleter = _DELETER(self._delete)
        if version is None:
            self._managed: Any = _Managed(tensor, None, self._deleter)
            self._name = b"dltensor"
        else:
            self._managed = _Versioned(*version, None, self._deleter, 0, tensor)
            self._name = b"dltensor_versioned"

    def __dlpack__(self, **options: Any) -> Any:
        return _new(ctypes.addressof(self._managed), self._name, None)

    def _delete(self, _: int) -> None:
        self.deleted += 1

"""What a kernel on a GPU needs besides its arrays: whether they are there, the stream to run on, dtypes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from lowrank_core import _core
from lowrank_core.ops.arrays import Array, is_cupy, is_torch

EMULATED = _core.build_info()["cuda"] == "emulated"
"""Whether this is the extension of the tests that runs the GPU's kernels on the host: all arrays count as a GPU's."""


def on_device(a: Array) -> bool:
    """True for an array in a GPU's memory."""
    return EMULATED or is_cupy(a) or (is_torch(a) and a.is_cuda)


def stream_of(a: Array) -> int:
    """The current stream of the library and device of `a`, as an address; 0 on the host."""
    if is_torch(a) and a.is_cuda:
        return int(sys.modules["torch"].cuda.current_stream(a.device).cuda_stream)
    return int(sys.modules["cupy"].cuda.get_current_stream().ptr) if is_cupy(a) else 0


def on_host(a: Array) -> Any:
    """A NumPy array of float64 with the values of `a`; waits for the device."""
    if is_torch(a):
        return a.detach().double().cpu().numpy()
    return np.asarray(a.get() if is_cupy(a) else a, dtype=np.float64)


def in_dtype(a: Array, dtype: str) -> Array:
    """`a` in that dtype; itself where it has it."""
    return a.to(getattr(sys.modules["torch"], dtype)) if is_torch(a) else a.astype(dtype, copy=False)


def assign(out: Array, values: Array) -> None:
    """out <- values, rounded to its dtype."""
    if is_torch(out):
        out.copy_(values)
    else:
        out[...] = values


@contextlib.contextmanager
def torch_precision(precision: str) -> Iterator[None]:
    """In it torch's float32 products have that precision."""
    torch = sys.modules["torch"]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)

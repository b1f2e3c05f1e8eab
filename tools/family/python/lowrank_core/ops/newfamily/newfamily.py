"""What the family is."""

from __future__ import annotations

from lowrank_core import _core
from lowrank_core.ops.arrays import Array, call_named, check_array, dtype_name, empty, is_torch
from lowrank_core.ops.declare import Op, declare
from lowrank_core.ops.operators import torch_ops


def newfamily(x: Array) -> Array:
    """What the family is.

    Args:
      x: [...], float32, contiguous.

    Returns:
      An array like `x`.

    Raises:
      TypeError: not a float32 array. ValueError: not contiguous.

    Numerics: tier D0 (same bits on every device and level; docs/numerics.md). Not differentiable.
    Source: paper, equation.

    Example:
      >>> import numpy as np, lowrank_core as lc
      >>> lc.newfamily(np.ones(2, np.float32))
      array([2., 2.], dtype=float32)
    """
    if is_torch(x):
        _check(x)  # before torch's schema, which has its own words
        return torch_ops().newfamily(x)
    return _run(x)


def _check(x: Array) -> None:
    check_array("newfamily", "x", x, ndim=0)
    if dtype_name(x) != "float32":
        raise TypeError(f"newfamily: `x` must be float32, got {dtype_name(x)}; convert it")


def _fake(x: Array) -> Array:
    _check(x)
    return empty(x, tuple(x.shape), "float32")


def _run(x: Array) -> Array:
    out = _fake(x)
    call_named("newfamily", _core.newfamily, out, x, arrays={"x": x})
    return out


declare("newfamily", Op("newfamily(Tensor x) -> Tensor", run=_run, fake=_fake))

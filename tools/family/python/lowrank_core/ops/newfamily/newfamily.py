"""What the family is."""

from __future__ import annotations

from lowrank_core import _core
from lowrank_core.ops.arrays import Array, call_named, check_array, dtype_name, empty
from lowrank_core.ops.declare import Op, declare
from lowrank_core.ops.operators import call


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
    return call(_NEWFAMILY, x)


def _check(x: Array) -> None:
    check_array("newfamily", "x", x, ndim=0)
    if dtype_name(x) != "float32":
        raise TypeError(f"newfamily: `x` must be float32, got {dtype_name(x)}; convert it")


def _outputs(x: Array) -> Array:
    return empty(x, tuple(x.shape), "float32")


def _newfamily(out: Array, x: Array) -> None:
    call_named("newfamily", _core.newfamily, out, x, arrays={"x": x})


_NEWFAMILY = Op("newfamily(Tensor x) -> Tensor", check=_check, outputs=_outputs, kernel=_newfamily)
declare("newfamily", _NEWFAMILY)

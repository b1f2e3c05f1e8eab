"""Family `newfamily` in float64: the oracle of its tests and benches."""

from __future__ import annotations

from torch import Tensor


def newfamily(x: Tensor) -> Tensor:
    """[...] -> [...]: what the kernel is to compute."""
    return 2 * x.double()

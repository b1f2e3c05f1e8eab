"""Every function of the family `rsvd` behind one call, so that a property of all is one test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lowrank_core
import numpy as np
import torch
from testing import cases
from torch import Tensor

Call = Callable[[Any], Any]


def _basis(a: Any) -> Any:
    """[m, 4] of the kind of `a`: some guess of its column space."""
    if isinstance(a, Tensor):
        return a[..., :4].clone()
    return np.ascontiguousarray(a[..., :4])


def _tall(a: Any) -> Any:
    return a[..., : a.shape[-2] // 2]


# Arrays [..., m, n] with m <= n in, arrays out.
CALLS: dict[str, Call] = {
    "rsvd": lambda a: lowrank_core.rsvd(a, 9, precision="highest"),
    "rsvd_medium": lambda a: lowrank_core.rsvd(a, 9, precision="medium"),
    "rsvd_warm": lambda a: lowrank_core.rsvd(a, 9, basis=_basis(a), niter=1, precision="highest"),
    "svd_lowrank": lambda a: lowrank_core.svd_lowrank(a, 9),
    "range_finder": lambda a: lowrank_core.range_finder(a, 9, precision="highest"),
    "range_finder_warm": lambda a: lowrank_core.range_finder(a, 9, basis=_basis(a), niter=1, precision="highest"),
    "factored_svd": lambda a: lowrank_core.factored_svd(_tall(a), a[..., : _tall(a).shape[-1], :]),
    "factored_svd_wide": lambda a: lowrank_core.factored_svd(a[..., :9, :], a[..., :7, :].swapaxes(-1, -2)),
    "orthonormalize": lambda a: lowrank_core.orthonormalize(_tall(a)),
    "householder": lambda a: lowrank_core.orthonormalize(_tall(a), method="householder"),
    "newton_schulz": lambda a: lowrank_core.orthonormalize(_tall(a), method="newton_schulz"),
    "project_left": lambda a: lowrank_core.project(a, a[..., :9], side="left"),
    "project_right": lambda a: lowrank_core.project(a, a[..., :9, :].swapaxes(-1, -2), side="right"),
    "project_back_left": lambda a: lowrank_core.project_back(a[..., :9, :], a[..., :9], side="left"),
    "project_back_right": lambda a: lowrank_core.project_back(a[..., :9], a[..., :9, :].swapaxes(-1, -2), side="right"),
}
UNBATCHED: dict[str, Call] = {
    "qb": lambda a: lowrank_core.qb(a, energy=0.9)[:2],
}
ALL = CALLS | UNBATCHED


def matrix(m: int = 61, n: int = 83, *batch: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return cases.gaussian(m, n, *batch, seed=3).to(dtype)


def arrays(out: Any) -> tuple[Any, ...]:
    """The arrays of a result as a tuple."""
    return tuple(out) if isinstance(out, tuple) else (out,)

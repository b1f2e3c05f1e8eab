"""Norms of gradients: exact, and of a sum of which only a subspace and a sketch are left."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lowrank_core.memory.geometry import Geometry, Side
from lowrank_core.memory.gradients import SKETCH_COLUMNS
from lowrank_core.ops.arrays import resolve_precision
from lowrank_core.ops.normal import fill_normal
from lowrank_core.ops.subspace_step.step import project_list
from lowrank_core.optim.bucket import batches
from lowrank_core.optim.devices import has_kernels
from lowrank_core.optim.dtypes import work_dtype
from lowrank_core.optim.parts.subspaces import Subspace

_NORM_EPS = 1e-6  # torch's, beside the norm that gradients are clipped to
_RUN = 4096  # elements of one sum: torch splits a long one by the number of threads, which shows in the bits
_BLOCK = 8 * _RUN  # elements that are copied to double at a time


def squared_norm(tensor: Tensor) -> Tensor:
    """0-d float64: |tensor|_F^2. Takes no copy of `tensor` and waits for no device."""
    if tensor.device.type != "cpu":
        norm: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.float64)
        return norm.square()
    if tensor.ndim != 2 or tensor.shape[1] > _BLOCK:
        flat = tensor.reshape(-1)
        whole = flat.numel() // _RUN * _RUN
        return squared_norm(flat[:whole].view(-1, _RUN)) + squared_norm(flat[None, whole:])
    lines = max(1, _BLOCK // max(1, tensor.shape[1]))
    squares = torch.zeros((), dtype=torch.float64)
    for some in batches(lines, tensor.shape[0]):  # torch copies what it adds up in another dtype
        squares += torch.linalg.vector_norm(tensor[some], dim=1, dtype=torch.float64).square().sum()
    return squares


def total(squares: Iterable[Tensor]) -> Tensor:
    """0-d float64, on the device of the first: the sum."""
    squares = list(squares)
    if not squares:
        return torch.zeros((), dtype=torch.float64)
    return torch.stack([square.to(squares[0].device) for square in squares]).sum()


def sketch(matrix: Tensor, where: Geometry, seed: int) -> Tensor:
    """[m, 16] or [n, 16], in the working dtype: `matrix` times normal columns, from the side that has no basis.

    It is linear in `matrix`, and the mean square of a column is |matrix|_F^2 in the mean.
    """
    right = where.side == Side.LEFT
    found: Tensor
    columns = torch.empty(matrix.shape[1 if right else 0], SKETCH_COLUMNS, dtype=work_dtype(matrix.dtype), device="cpu")
    fill_normal(columns, seed)
    columns = columns.to(matrix.device)
    if has_kernels(matrix.device):
        precision = resolve_precision("step", None)
        (found,), _ = project_list([matrix], [matrix], [columns], [right], maximize=False, precision=precision)
    else:
        wide = matrix.to(columns.dtype)
        found = wide @ columns if right else columns.mT @ wide
    return found if right else found.mT


def estimate(low: Tensor, sketched: Tensor, subspace: Subspace, where: Geometry, seed: int) -> tuple[Tensor, Tensor]:
    """|G|_F^2 of a gradient that is gone, and the variance of this estimate: 0-d float64 each.

    What the subspace holds of it counts exactly; what it drops counts as the sketch says. Forms one matrix [m, n].

    Args:
      low: G in the subspace.
      sketched: the sketch of G by `seed`.
    """
    lifted = subspace.up(low)
    inside = sketch(lifted, where, seed)
    rest = sketched.double().square().sum(dim=0) - inside.double().square().sum(dim=0)
    return squared_norm(lifted) + rest.mean().clamp(min=0), rest.var() / SKETCH_COLUMNS


class Clip:
    """Brings gradients down to a norm of all of them together, and keeps what was found of it.

    Source: the factor is that of torch.nn.utils.clip_grad_norm_.
    """

    def __init__(self, max_norm: float, whole: bool) -> None:
        self.max_norm = max_norm
        self.whole = whole  # the norm of whole gradients, not of what is applied
        self.norm: Tensor | None = None  # 0-d float64 of the last step, and its standard error as a share of it
        self.error: Tensor | None = None

    def factor(self, norm: Tensor, variance: Tensor | None = None) -> Tensor:
        """0-d float64 in (0, 1]: what gradients of `norm`, whose square has a `variance`, are multiplied by."""
        self.norm = norm
        # Of the root: half of the relative error of the square.
        self.error = torch.zeros_like(norm) if variance is None else variance.to(norm.device).sqrt() / (2 * norm**2)
        factor = (self.max_norm / (norm + _NORM_EPS)).clamp(max=1)
        # A norm that is not finite is left for the verdict on the gradients, which names the parameter.
        return torch.where(norm.isfinite(), factor, 1.0)

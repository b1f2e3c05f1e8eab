"""The nearest orthogonal matrix, roughly, by Newton and Schulz' iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowrank_core.checks import is_count, is_number, require
from lowrank_core.memory.storage import Layout
from lowrank_core.ops.products import orthogonalize_into
from lowrank_core.optim.devices import has_kernels
from lowrank_core.optim.parts.rules import Direction, Moments, Turn

COEFFICIENTS = (3.4445, -4.775, 2.0315)
_MANY_STEPS = 100  # torch's limit


@dataclass(frozen=True)
class NewtonSchulz:
    """X <- X / max(|X|_F, eps), then X <- a X + (b A + c A^2) X with A = X X^T, `steps` times.

    Singular values end near 1, between about 0.7 and 1.2, where they were not tiny beside |X|_F. No moments.
    Operands of float32 products are rounded to bfloat16, with float32 sums, where the processor multiplies these
    faster: the iteration was made for it. Elsewhere it runs in float32, for float64 weights in float64.

    Source: Jordan et al. 2024 (Muon, kellerjordan.github.io/posts/muon), with torch.optim.Muon's names, which always
      runs in bfloat16.
    """

    coefficients: tuple[float, float, float] = COEFFICIENTS
    steps: int = 5
    eps: float = 1e-7

    def __post_init__(self) -> None:
        name, three = type(self).__name__, isinstance(self.coefficients, (tuple, list)) and len(self.coefficients) == 3
        met = three and all(map(is_number, self.coefficients))
        require(met, name, "ns_coefficients", "be three finite numbers", self.coefficients)
        met = is_count(self.steps, 0) and self.steps < _MANY_STEPS
        require(met, name, "ns_steps", f"be an int >= 0 and < {_MANY_STEPS}", self.steps)
        require(is_number(self.eps) and self.eps > 0, name, "eps", "be a number > 0", self.eps)

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return {}

    def update(self, grad: Tensor, moments: Moments, step: float | Tensor) -> Direction:
        return Direction(self.orthogonalized(grad))

    def turned(self, moments: Moments, turn: Turn, step: float | Tensor) -> Moments:
        return moments

    def unbias(self, step: float | Tensor) -> float | Tensor:
        return 1.0

    def kernel(self) -> dict[str, Any]:
        return {}

    def orthogonalized(self, matrices: Tensor) -> Tensor:
        """Of a matrix [m, n], or of each of a batch [..., m, n], in float32 or float64; new memory."""
        if has_kernels(matrices.device):
            found: Tensor = torch.empty(matrices.shape, dtype=matrices.dtype, device=matrices.device)
            self.orthogonalize_into([found], [matrices])
            return found
        tall = matrices.shape[-2] > matrices.shape[-1]
        x = matrices.mT if tall else matrices
        a, b, c = self.coefficients
        # The norm by rows first: torch splits one long reduction by the number of threads, which shows in the bits.
        norm = torch.linalg.vector_norm(torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64), dim=-1)
        x = x / norm.clamp(min=self.eps)[..., None, None].to(x.dtype)
        for _ in range(self.steps):
            gram = x @ x.mT
            x = a * x + (b * gram + c * (gram @ gram)) @ x
        oriented: Tensor = x.mT if tall else x
        return oriented

    def orthogonalize_into(self, outs: list[Tensor], matrices: list[Tensor]) -> None:
        """The same of matrices of any shapes in one call, each with the bits that it has alone. By kernels."""
        orthogonalize_into(outs, matrices, coefficients=self.coefficients, steps=self.steps, eps=self.eps)

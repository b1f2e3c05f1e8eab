"""Arrays that are the same in every run, and how calls are named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Run = Callable[["Source"], Any]
Cases = Iterator[tuple[str, str, Run]]  # operator, what is special about the call, the call

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SHAPES = ((40, 24), (24, 40), (37, 53), (1, 5), (130, 67), (300, 190))
FEW = ((40, 24), (37, 53), (130, 67))


class Source:
    """Arrays of one dtype, the same in every run."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._draw = torch.Generator().manual_seed(5)

    def wide(self, *shape: int) -> Tensor:
        """Normal numbers in float64."""
        return torch.randn(shape, generator=self._draw, dtype=torch.float64)

    def normal(self, *shape: int) -> Tensor:
        return self.wide(*shape).to(self.dtype)

    def positive(self, *shape: int) -> Tensor:
        return (self.wide(*shape).abs() + 0.5).to(self.dtype)

    def basis(self, m: int, r: int) -> Tensor:
        """Orthonormal columns by Gram and Schmidt, for LAPACK's bits are no part of this."""
        columns: list[Tensor] = []
        for column in self.wide(r, m):
            for other in columns * 2:
                column = column - (other * column).sum() * other
            columns.append(column / column.square().sum().sqrt())
        return torch.stack(columns, dim=1).to(self.dtype)

    def decaying(self, m: int, n: int) -> Tensor:
        """A matrix with clear leading directions, for what is decided by singular values."""
        r = min(m, n, 12)
        factors = self.wide(m, r), 0.6 ** torch.arange(r, dtype=torch.float64)[:, None] * self.wide(r, n)
        return (sum(factors[0][:, i : i + 1] * factors[1][i : i + 1] for i in range(r)) + 1e-3 * self.wide(m, n)).to(
            self.dtype
        )


def named(options: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in options.items())


def size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def with_gradients(run: Callable[..., Any], arguments: list[Any], leaves: list[Tensor]) -> Any:
    """What `run` gives, and the gradients of its sum with growing factors."""
    for leaf in leaves:
        leaf.requires_grad_()
    out = run(*arguments)
    outs = [one for one in (out if isinstance(out, tuple) else (out,)) if one.requires_grad]
    factors = [torch.linspace(-1, 1, one.numel(), dtype=torch.float64).reshape(one.shape).to(one.dtype) for one in outs]
    return out, torch.autograd.grad(outs, leaves, factors, allow_unused=True)

"""The products of matrices that a step cannot do without, for methods that take more of them than a projection does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import ceil
from typing import NamedTuple

import torch

from lowrank_core.cli.bench.shapes import Shapes
from lowrank_core.cli.bench.timing import Call
from lowrank_core.memory.methods import METHODS
from lowrank_core.ops.products import takes_bfloat16


class Product(NamedTuple):
    """[m, k] by [k, n], `times` times in a step."""

    what: str
    m: int
    k: int
    n: int
    times: int = 1
    rounded: bool = (
        False  # whether operands are rounded to bfloat16 where the processor gains from it, at any precision
    )

    @property
    def flops(self) -> int:
        """Multiplications and additions of all `times`."""
        return 2 * self.m * self.k * self.n * self.times


def products_of(method: str, shapes: Shapes, rank: int) -> list[Product]:
    """Of one step between refreshes, equal ones of all matrices counted together.

    For `method` of `LISTED` alone, with its own defaults besides the rank. What a step only reads and writes is not
    there, nor is a transform that need not be a product.
    """
    counted: dict[Product, int] = {}
    for rows, cols in shapes:
        for product in LISTED[method](min(rows, cols), max(rows, cols), rank):
            counted[product._replace(times=1)] = counted.get(product._replace(times=1), 0) + product.times
    return [product._replace(times=times) for product, times in counted.items()]


def _newton_schulz(method: str, short: int, long: int) -> Iterator[Product]:
    """X <- a X + (b A + c A^2) X with A = X X^T, of a matrix [short, long]."""
    steps = METHODS[method].own["ns_steps"]
    yield Product("A = X X^T", short, long, short, steps, True)
    yield Product("A A", short, short, short, steps, True)
    yield Product("(b A + c A^2) X", short, short, long, steps, True)


def _muon(short: int, long: int, rank: int) -> Iterator[Product]:
    yield from _newton_schulz("muon", short, long)


def _dion2(short: int, long: int, rank: int) -> Iterator[Product]:
    yield from _newton_schulz("dion2", ceil(METHODS["dion2"].own["fraction"] * short), long)


def _trion(short: int, long: int, rank: int) -> Iterator[Product]:
    """The transform is taken for a product with the atoms that it then chooses, which is less than it is."""
    yield from _newton_schulz("trion", rank, long)
    yield Product("S_I = Q_I^T G", rank, short, long)
    yield Product("Q_I O", short, rank, long)


def _ldadam(short: int, long: int, rank: int) -> Iterator[Product]:
    """A power step with B = rho P M + (1 - rho) A, QR by two Cholesky factorizations, moments turned, two lifts more
    than GaLore's for what is fed back."""
    yield Product("P^T A", rank, short, long)
    yield Product("A (B^T P)", short, long, rank)
    yield Product("M (B^T P)", rank, long, rank)
    yield Product("P (M B^T P)", short, rank, rank)
    yield Product("QR: Y^T Y", rank, short, rank, 2)
    yield Product("QR: Y R^-1", short, rank, rank, 2)
    yield Product("R = P^T A", rank, short, long)
    yield Product("T = P^T P_old", rank, short, rank)
    yield Product("T M, T^2 V", rank, rank, long, 2)
    yield Product("P_old M_old, P M, P N", short, rank, long, 3)


LISTED: dict[str, Callable[[int, int, int], Iterator[Product]]] = {
    "muon": _muon,
    "dion2": _dion2,
    "trion": _trion,
    "ldadam": _ldadam,
}


def taking(products: list[Product]) -> Call:
    """Takes all of them by torch.mm, at torch's precision of float32 products or in bfloat16.

    Equal products take the same operands, which stay in a cache if they fit: the times are the least there is.
    """
    jobs = [(*_operands(product), product.times) for product in products]

    def take() -> None:
        for left, right, out, times in jobs:
            for _ in range(times):
                torch.mm(left, right, out=out)

    return take


def _operands(product: Product) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    narrow = takes_bfloat16() and (product.rounded or torch.get_float32_matmul_precision() == "medium")
    dtype = torch.bfloat16 if narrow else torch.float32
    left, right = torch.ones(product.m, product.k, dtype=dtype), torch.ones(product.k, product.n, dtype=dtype)
    return left, right, torch.empty(product.m, product.n, dtype=dtype)

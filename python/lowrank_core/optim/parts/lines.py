"""Rows and columns of a matrix at unit root mean square.

Sums of squares are products with ones, so that their bits depend on no number of threads. They follow
`torch.get_float32_matmul_precision()`, as all products do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowrank_core.optim.parts.products import project


def normalized_lines(matrix: Tensor, rows: bool) -> Tensor:
    """[m, n], each row (else each column) divided by its root mean square; lines of zeros stay. Any scale is right."""
    largest = _peaks(matrix, rows)
    work = _shrunk(matrix, largest).square_()
    roots = _or_one(_means(work, rows)).sqrt_()
    normalized: Tensor = torch.div(matrix, largest, out=work).div_(roots)
    return normalized


def balanced(matrix: Tensor, iterations: int) -> Tensor:
    """[m, n], each row and then each column divided by its root mean square, `iterations` times.

    The columns of the result have a root mean square of 1, and so nearly have the rows; lines of zeros stay. An entry
    that is below 1e-19 times the largest one of its row counts as zero.
    """
    squares = _shrunk(matrix, _peaks(matrix, rows=True)).square_()
    for _ in range(iterations):
        for rows in (True, False):
            squares.div_(_or_one(_means(squares, rows)))
    return squares.sqrt_().copysign_(matrix)


def _peaks(matrix: Tensor, rows: bool) -> Tensor:
    """The largest magnitude of each row [m, 1] or column [1, n]; 1 where all is zero."""
    dim = 1 if rows else 0
    return _or_one(torch.maximum(matrix.amax(dim, keepdim=True), -matrix.amin(dim, keepdim=True)))


def _shrunk(matrix: Tensor, largest: Tensor) -> Tensor:
    """matrix / largest in rows that run along memory, so that no layout of the gradient shows in the sums."""
    out = torch.empty(matrix.shape, dtype=matrix.dtype, device=matrix.device)
    shrunk: Tensor = torch.div(matrix, largest, out=out)
    return shrunk


def _means(matrix: Tensor, rows: bool) -> Tensor:
    """The mean of each row [m, 1] or column [1, n]."""
    count = matrix.shape[1 if rows else 0]
    return project(matrix, matrix.new_ones(count, 1), "right" if rows else "left") / count


def _or_one(numbers: Tensor) -> Tensor:
    return torch.where(numbers == 0, 1.0, numbers)

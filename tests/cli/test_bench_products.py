"""The products of matrices that `bench step` compares some methods with, against counts of plain steps."""

from __future__ import annotations

import pytest
import torch
from lowrank_core.cli.bench.products import LISTED, products_of, taking
from lowrank_core.cli.bench.shapes import MODELS, elements, matrices
from torch.optim._muon import _zeropower_via_newtonschulz
from torch.utils.flop_counter import FlopCounterMode

SHAPES = [(48, 32), (32, 48), (32, 32)]


def counted(call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("method", LISTED)
def test_products_that_are_taken_are_those_that_are_listed(method):
    products = products_of(method, SHAPES * 3, 8)
    assert counted(taking(products)) == sum(product.flops for product in products)
    assert sum(p.flops for p in products) == 3 * sum(p.flops for p in products_of(method, SHAPES, 8))


def test_products_of_newton_and_schulz_are_torchs():
    def of_torch(shapes):
        return counted(
            lambda: [_zeropower_via_newtonschulz(torch.ones(s), (3.4445, -4.775, 2.0315), 5, 1e-7) for s in shapes]
        )

    assert sum(p.flops for p in products_of("muon", SHAPES, 8)) == of_torch(SHAPES)
    quarters = [(48, 8), (8, 48), (32, 8)]  # of SHAPES, columns of a square matrix
    assert sum(p.flops for p in products_of("dion2", SHAPES, 8)) == of_torch(quarters)
    projections = sum(2 * 2 * 8 * m * n for m, n in SHAPES)
    assert sum(p.flops for p in products_of("trion", SHAPES, 8)) == of_torch(quarters) + projections


def test_products_of_ldadam_are_those_of_its_step():
    """The algorithm in plain torch, with QR by two Cholesky factorizations: their inverses are no products."""

    def plain(short, long, rank):
        a, p, m, v = torch.randn(short, long), torch.randn(short, rank), torch.randn(rank, long), torch.rand(rank, long)
        seen = m + p.mT @ a  # B^T P, with an orthonormal P
        y = a @ seen.mT + p @ (m @ seen.mT)
        for _ in range(2):
            y = y @ (y.mT @ y)  # stands for Y R^-1
        low, turn = y.mT @ a, y.mT @ p
        first, second = turn @ m, (turn * turn) @ v
        return p @ m, y @ (first + low), y @ (low / second)

    for shape in SHAPES:
        sides = min(shape), max(shape)
        listed = sum(product.flops for product in products_of("ldadam", [shape], 8))
        assert listed == counted(lambda sides=sides: plain(*sides, 8))


def test_models_are_those_of_the_papers():
    assert elements(matrices(MODELS["llama-130m"])) == 84_934_656
    assert matrices(MODELS["small"]) == [*[(256, 256)] * 4, *[(680, 256)] * 2, (256, 680)] * 4

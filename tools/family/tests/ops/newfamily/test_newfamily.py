"""newfamily against the reference; layouts, threads, levels, refusals and properties are to follow."""

from __future__ import annotations

import lowrank_core
import torch
from lowrank_core.reference import newfamily as reference
from testing import cases, checks


def test_against_the_reference() -> None:
    for m, n in ((0, 3), (1, 1), (cases.VECTOR + 1, cases.PRIME)):
        x = cases.gaussian(m, n).float()
        assert torch.equal(lowrank_core.newfamily(x).double(), reference.newfamily(x))


def test_numpy_equals_torch() -> None:
    x = cases.gaussian(5, 7).float()
    assert checks.same_bits(lowrank_core.newfamily(x), lowrank_core.newfamily(x.numpy()))

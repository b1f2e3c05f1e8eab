"""How long an array lives that a kernel was given: as long as the call, and no longer."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable
from typing import Any

import lowrank_core
import numpy as np
import pytest
import torch
from test_caster import OK, DLPackOnly, exported_read_only, multiply, read_only
from testing import cases, checks


class Watched(np.ndarray):
    """An array that can be watched dying."""


@pytest.mark.parametrize("convert", [lambda a: a, DLPackOnly, torch.from_numpy], ids=["numpy", "dlpack", "torch"])
def test_arrays_are_let_go_after_the_call(convert: Callable[[Any], Any]) -> None:
    """Neither leaked, nor released twice, on success and on refusal."""
    base = np.ones((2, 2))
    before = sys.getrefcount(base)
    for _ in range(100):
        multiply(np.empty((2, 2)), convert(base), OK)
        with pytest.raises(ValueError, match="gemm"):
            multiply(np.empty((2, 3)), convert(base), OK)
    gc.collect()
    assert sys.getrefcount(base) == before
    assert np.array_equal(base, OK)


def test_an_output_refused_as_read_only_is_let_go() -> None:
    exported_read_only(np.zeros((2, 2)))
    out = read_only(np.zeros((2, 2)))
    before = sys.getrefcount(out)
    for _ in range(100):
        with pytest.raises(ValueError, match="read-only"):
            multiply(DLPackOnly(out), OK, OK)
    gc.collect()
    assert sys.getrefcount(out) == before
    assert not out.any()


def test_the_owner_lives_as_long_as_the_call() -> None:
    """The only reference to the array is the capsule that the producer made."""
    deaths: list[int] = []
    calls: list[int] = []

    class Ephemeral:
        def __dlpack__(self, **options: Any) -> Any:
            calls.append(1)  # twice where the producer knows no versions
            array = np.full((300, 300), 2.0).view(Watched)
            weakref.finalize(array, deaths.append, 1)
            return array.__dlpack__(**options)

    out = np.empty((300, 300))
    multiply(out, Ephemeral(), np.eye(300))
    assert np.array_equal(out, np.full((300, 300), 2.0))
    gc.collect()
    assert deaths == calls


def test_results_are_new_memory() -> None:
    """No output aliases an input, nor a buffer of the kernels that the next call fills again."""
    a = cases.gaussian(30, 20)
    first = lowrank_core.rsvd(a, 4)
    kept = tuple(x.clone() for x in first)
    lowrank_core.rsvd(2 * a + 1, 4)
    a.zero_()
    assert checks.same_bits(tuple(first), kept)

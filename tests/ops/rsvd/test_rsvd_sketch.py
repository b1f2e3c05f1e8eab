"""Random bits: published vectors, the C++ header against the reference, the same at every level and thread count."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lowrank_core import _core
from lowrank_core.reference import philox
from testing import cases, machine

LEVELS = _core.isa_levels()
MAX_SEED = 2**63 - 1

# Random123's known answers for philox4x32 with 10 rounds: counter, key, result.
ONES = 0xFFFFFFFF
KNOWN_ANSWERS = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


def kernel_bits(count: int, seed: int, stream: int, step: int, first: int) -> np.ndarray:
    out = np.empty(count, dtype=np.int64)
    _core.philox_bits(out, seed=seed, stream=stream, step=step, first=first)
    return out


def kernel_sketch(rows: int, cols: int, seed: int, step: int = 0) -> np.ndarray:
    out = np.full((rows, cols), math.nan, dtype=np.float32)
    _core.sketch(out, seed=seed, step=step)
    return out


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS, ids=("zeros", "ones", "pi"))
def test_reference_gives_the_published_vectors(counter, key, answer) -> None:
    assert tuple(philox.philox4x32(np.array(counter, dtype=np.uint64), key)) == answer


def test_kernel_gives_the_published_vector() -> None:
    """The one that a position can name; the other two counters exceed the block numbers (tests/cpp has them)."""
    assert tuple(kernel_bits(4, 0, 0, 0, 0)) == KNOWN_ANSWERS[0][2]


@given(
    seed=st.integers(0, 2**64 - 1),
    stream=st.integers(0, 2**32 - 1),
    step=st.integers(0, 2**32 - 1),
    first=st.integers(0, 2**64 - 12),
)
def test_bits_are_a_function_of_position(seed: int, stream: int, step: int, first: int) -> None:
    element = np.arange(11, dtype=np.uint64) + np.uint64(first)
    expected = philox.bits(seed, element, stream=stream, step=step)
    assert np.array_equal(kernel_bits(11, seed, stream, step, first), expected.astype(np.int64))


SHAPES = [(0, 3), (3, 0), (0, 0), (1, 1), (5, cases.PRIME), (40, 2)]
SHAPES += [(cases.DEPTH + d, cases.NONZEROS + e) for d in (-1, 0, 1) for e in (-1, 0, 1)]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sketch_equals_the_reference(shape: tuple[int, int], level: str) -> None:
    for seed, step in ((0, 0), (1, 2), (2**32, 0), (MAX_SEED, 2**32 - 1)):
        with machine.isa(level):
            assert np.array_equal(kernel_sketch(*shape, seed, step), philox.sketch(*shape, seed, step=step))


@pytest.mark.parametrize("count", [2, 3])
def test_sketch_does_not_depend_on_threads(count: int) -> None:
    shape = (3 * cases.DEPTH + 1, cases.PRIME)
    with machine.threads(count):
        assert np.array_equal(kernel_sketch(*shape, 5), philox.sketch(*shape, 5))


@given(rows=st.integers(1, 30), cols=st.integers(1, 60), seed=st.integers(0, MAX_SEED), step=st.integers(0, 2**32 - 1))
def test_every_row_has_one_entry_in_every_strip(rows: int, cols: int, seed: int, step: int) -> None:
    sketch = kernel_sketch(rows, cols, seed, step)
    assert (np.abs(sketch) <= 1).all()
    assert np.array_equal(sketch * 2.0**23, np.round(sketch * 2.0**23))  # exact in float32
    count = min(cols, cases.NONZEROS)
    for t in range(count):
        strip = sketch[:, cols * t // count : cols * (t + 1) // count]
        assert ((strip != 0).sum(axis=1) <= 1).all()
    # An entry is zero only where the draw was: once in 2**24.
    assert (sketch != 0).sum() >= rows * count - 1


def test_sketches_are_fair_and_independent() -> None:
    """Uniform in [-1, 1) and over the columns; rows and neighbouring seeds unrelated: 6 standard deviations at most."""
    rows, cols = 4000, 50
    sketches = [philox.sketch(rows, cols, seed) for seed in range(4)]
    count = rows * cases.NONZEROS
    for one in sketches:
        values = one[one != 0]
        assert values.size >= count - 1
        assert abs(values.mean()) <= 6 * math.sqrt(1 / 3 / count)
        assert abs((values**2).mean() - 1 / 3) <= 6 * math.sqrt(4 / 45 / count)  # variance of a squared uniform
        for t in range(cases.NONZEROS):
            begin, end = cols * t // cases.NONZEROS, cols * (t + 1) // cases.NONZEROS
            share = 1 / (end - begin)
            drawn = (one[:, begin:end] != 0).mean(axis=0)
            assert np.abs(drawn - share).max() <= 6 * math.sqrt(share * (1 - share) / rows)
    pairs = [(one[1:], one[:-1]) for one in sketches] + list(itertools.pairwise(sketches))
    for one, other in pairs:
        products = one * other
        assert abs(products.sum()) <= 6 * math.sqrt((products**2).sum())


@pytest.mark.parametrize("bad", [np.empty((2, 3)), np.empty((2, 6), np.float32)[:, ::2], np.empty(3, np.float32)])
def test_sketch_refuses_what_it_cannot_fill(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="sketch: `out` must be a contiguous float32 matrix"):
        _core.sketch(bad)


@pytest.mark.parametrize("bad", [np.empty(3), np.empty((1, 3), np.int64), np.empty(6, np.int64)[::2]])
def test_bits_refuse_what_they_cannot_fill(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="philox_bits: `out` must be a contiguous int64 vector"):
        _core.philox_bits(bad, seed=0, stream=0, step=0)

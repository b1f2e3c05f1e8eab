"""Philox4x32-10 on NumPy integers, stated independently of the C++ header that it is compared with.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 3.3 and table 2.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Words: TypeAlias = NDArray[np.uint64]
"""Numbers below 2**32, kept in 64 bits so that a product of two is exact."""

SKETCH_STREAM = 1
SKETCH_NONZEROS = 8
ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


def philox4x32(counter: Words, key: tuple[int, int]) -> Words:
    """The bijection on 128 bits that a key selects.

    Args:
      counter: [4, ...], words; the first is the least significant.
      key: two words.

    Returns:
      [4, ...], words.
    """
    low, shift = np.uint64(_LOW), np.uint64(32)
    c0, c1, c2, c3 = np.asarray(counter, dtype=np.uint64)
    for number in range(ROUNDS):
        k0, k1 = (np.uint64((k + number * w) & _LOW) for k, w in zip(key, _WEYL, strict=True))
        left, right = c0 * np.uint64(_MULTIPLIERS[0]), c2 * np.uint64(_MULTIPLIERS[1])
        c0, c1, c2, c3 = (right >> shift) ^ c1 ^ k0, right & low, (left >> shift) ^ c3 ^ k1, left & low
    return np.stack([c0, c1, c2, c3])


def blocks(seed: int, index: Words, *, stream: int, step: int = 0) -> Words:
    """[4, ...]: the 128 bits of each block number of `index`; key = seed, counter = (index, stream, step)."""
    index = np.asarray(index, dtype=np.uint64)
    constant = np.ones_like(index)
    counter = np.stack([index & np.uint64(_LOW), index >> np.uint64(32), constant * stream, constant * step])
    return philox4x32(counter, (seed & _LOW, seed >> 32))


def bits(seed: int, element: Words, *, stream: int, step: int = 0) -> Words:
    """[...]: 32 random bits for each element; four consecutive elements share a block."""
    element = np.asarray(element, dtype=np.uint64)
    words = blocks(seed, element >> np.uint64(2), stream=stream, step=step)
    picked: Words = np.take_along_axis(words, (element & np.uint64(3)).astype(np.intp)[None], axis=0)[0]
    return picked


def sketch(rows: int, cols: int, seed: int, *, step: int = 0, stream: int = SKETCH_STREAM) -> NDArray[np.float64]:
    """A sparse sketch [rows, cols]: each of min(cols, 8) strips of the columns holds one entry of every row.

    Entry t of row i takes two words of block (8 i + t) // 2, the first two for even t: the first word, as a fraction of
    2**32, says where in the strip, the second, as a signed integer, its value on a grid of 2**-23 in [-1, 1).
    """
    out = np.zeros((rows, cols))
    row = np.arange(rows, dtype=np.uint64)
    count = min(cols, SKETCH_NONZEROS)
    for t in range(count):
        begin, end = cols * t // count, cols * (t + 1) // count
        block = (row * np.uint64(SKETCH_NONZEROS) + np.uint64(t)) >> np.uint64(1)
        place, size = blocks(seed, block, stream=stream, step=step)[2 * (t % 2) :][:2]
        col = begin + ((place * np.uint64(end - begin)) >> np.uint64(32)).astype(np.intp)
        out[row.astype(np.intp), col] = (size.astype(np.uint32).view(np.int32) >> 8) * 2.0**-23
    return out

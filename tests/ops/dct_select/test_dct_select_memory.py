"""Memory of transforms of few, long rows: a small multiple of the rows, and no row of it kept."""

from __future__ import annotations

import subprocess
import sys

import lowrank_core as lc
import numpy as np
import pytest
import torch
from lowrank_core import _core
from testing import cases, machine, tolerance

MEASURE = """
import ctypes
import numpy as np
import lowrank_core as lc

def status(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))

x = np.ones((1, {n}), np.{dtype})
{function}(x[:, :64])
open("/proc/self/clear_refs", "w").write("5")  # the highest use so far is forgotten
before = status("VmRSS")
for _ in range(2):
    y = {function}(x)
    del y
highest = status("VmHWM")
trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # what the allocator keeps is not ours
trim and trim(0)
print((highest - before) / x.nbytes, (status("VmRSS") - before) / x.nbytes)
"""
# Of one row of n numbers of b bytes, in rows: the result 1, the tile 1, the plan's twiddles 1, turns 2 and tables of
# places of 4 bytes, 14 / b in all; beside them what allocators keep. A plan of more than 64 MB is not kept, and of
# buffers a thread keeps 32 MB at most: half a row here.
MULTIPLE = {"float32": 1 + 1 + 1 + 2 + 14 / 4, "float64": 1 + 1 + 1 + 2 + 14 / 8}
SLACK = 1.0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("dtype", MULTIPLE)
@pytest.mark.parametrize("function", ["lc.dct", "lc.idct"])
def test_one_long_row_takes_a_small_multiple_of_itself(function: str, dtype: str) -> None:
    n = (64 << 20) // np.dtype(dtype).itemsize
    code = MEASURE.format(n=n, dtype=dtype, function=function)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peak, held = map(float, done.stdout.split())
    assert peak <= MULTIPLE[dtype] + SLACK, f"grew by {peak:.1f} times the row"
    assert held <= SLACK, f"kept {held:.1f} times the row"


@pytest.mark.parametrize("level", _core.isa_levels())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [20000, 20001, 16411, 32768], ids=["even", "odd", "prime", "power"])
def test_a_row_alone_has_the_bits_of_a_row_among_many(n: int, dtype: type, level: str) -> None:
    """One row at a time, or one in each lane."""
    x = cases.generator(33, n).standard_normal((33, n)).astype(dtype)
    with machine.isa(level):
        for transform in (lc.dct, lc.idct):
            together = transform(x)
            for rows in (1, 2, 3, 4):
                assert transform(x[5 : 5 + rows]).tobytes() == together[5 : 5 + rows].tobytes()
            strided = np.repeat(x[5:6], 2, axis=1)[:, ::2]
            assert transform(strided).tobytes() == together[5:6].tobytes()


@pytest.mark.parametrize("basis", ["dct2", "dct3", "identity", "hadamard"])
def test_a_selection_of_one_long_row(basis: str) -> None:
    n, rank = 1 << 16, 50
    x = cases.generator(3, n).standard_normal((1, n)).astype(np.float32)
    whole = lc.dct_select(x, n, basis=basis, side="right")
    few = lc.dct_select(x, rank, basis=basis, side="right")
    order = np.sort(np.argsort(-np.abs(whole.coeffs[0]), kind="stable")[:rank])
    assert np.array_equal(few.indices, order) and np.array_equal(few.coeffs[0], whole.coeffs[0][order])
    squares = whole.coeffs[0].astype(np.float64) ** 2
    share = squares[order].sum() / squares.sum()
    assert abs(few.captured - share) <= 5 * tolerance.UNIT[torch.float32] * share  # of coefficients rounded once

"""No temporary of a weight's size: the peak of a process that takes one large step."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from subspace_cases import every_residual, every_side
from testing import step_bounds

SIZE, RANK, FLOAT = 3072, 32, 4
# The threads' pool and the kernels' code are brought in by a small step first; then memory is measured, not its peak,
# so that what the imports needed and gave back is not taken for the step's.
PROGRAM = """
import numpy, lowrank_core
size, rank, side, residual = {size}, {rank}, {side!r}, {residual!r}
def status(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024
def take(m, r):
    number = numpy.random.default_rng(0)
    low = (r, m) if side == "left" else (m, r)
    w, g = numpy.full((m, m), 0.5, numpy.float32), numpy.full((m, m), 0.25, numpy.float32)
    p = number.standard_normal((m, r), dtype=numpy.float32)
    first, second = numpy.zeros(low, numpy.float32), numpy.zeros(low, numpy.float32)
    limits = [numpy.zeros(1, numpy.float32)] if residual in ("scaled", "channel", "tensor") else None
    first[:], second[:] = 0.0, 0.0  # touched, so that they count before
    before = status("VmRSS")
    lowrank_core.subspace_step_(
        [w], [g], [p], [first], [second], sides=[side], steps=[1], lr=0.1, residual=residual, limits=limits
    )
    return status("VmHWM") - before
take(64, 4)
print(take(size, rank))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs the peak that Linux keeps")
@every_side
@every_residual
def test_no_temporary_of_a_weights_size(residual: str, side: str) -> None:
    """R; where something becomes of the rest, N and both of them paired; what a thread keeps; 2 % of the weight."""
    code = PROGRAM.format(size=SIZE, rank=RANK, side=side, residual=residual)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    low, copies = RANK * SIZE * FLOAT, {"drop": 1, "sign": 4}.get(residual, 2)
    allowed = copies * low + step_bounds.workspaces(1) + SIZE * SIZE * FLOAT // 50
    assert int(done.stdout) <= allowed, f"{int(done.stdout)} bytes, more than {allowed}"

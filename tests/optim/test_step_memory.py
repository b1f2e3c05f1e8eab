"""No temporary of a weight's size: how far a step of one large weight raises the memory of a process."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from testing import step_bounds

SIZE, RANK = 3072, 16
WIDTH = {"float32": 4, "bfloat16": 2}
# Small steps of the same kinds first: they bring in the code and the pool. The peak is then set back, so that what the
# imports needed is not taken for the step's.
PROGRAM = """
import torch
from lowrank_core.optim import METHODS

def status(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024

def risen(optimizer):
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    before = status("VmRSS")
    optimizer.step()
    return status("VmHWM") - before

def steps(size, rank, dtype, keys, method="galore"):
    weight = torch.nn.Parameter(torch.full((size, size), 0.5, dtype=getattr(torch, dtype)))
    weight.grad = torch.ones_like(weight)
    weight.grad[::7] = 0.25
    optimizer = METHODS[method]([weight], rank=rank, update_proj_gap=3, **keys)
    return [risen(optimizer) for _ in range(4)]

for case in {cases!r}:
    steps(64, 4, *case)
    print(*steps({size}, {rank}, *case))
"""
CASES: list[tuple[Any, ...]] = [
    ("float32", {}),
    ("float32", {"moments": "rotate", "weight_decay": 0.1}),
    ("float32", {"moment_dtype": "int8"}),
    ("bfloat16", {"rounding": "stochastic", "moment_dtype": "bfloat16"}),
    ("float32", {}, "qgalore"),
]


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs the peak that Linux keeps")
def test_a_step_takes_no_copy_of_a_weight() -> None:
    code = PROGRAM.format(size=SIZE, rank=RANK, cases=CASES)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    low, single = SIZE * RANK * 4, SIZE * SIZE * 4
    for (dtype, *keys), line in zip(CASES, done.stdout.splitlines(), strict=True):
        first, *between, refresh = (int(number) for number in line.split())
        # The low-rank gradient, what a thread keeps, 2 % of the weight.
        allowed = 2 * low + step_bounds.workspaces(1) + SIZE * SIZE * WIDTH[dtype] // 50
        assert max(between) <= allowed, (dtype, keys, between)
        # The search's panels, of rank + 10 columns; a half-precision gradient once in the precision it is searched in.
        copied = 0 if dtype == "float32" else single
        assert max(first, refresh) <= copied + single // 2, (dtype, keys, first, refresh)

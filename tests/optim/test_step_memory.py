"""No temporary of a weight's size: how far a step of one large weight raises the memory of a process."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any, NamedTuple

import pytest
from lowrank_core import memory
from lowrank_core.memory.methods import METHODS
from testing import step_bounds

SIZE, RANK = 3072, 16
SMALLER = 2048  # for all methods, some of which take long
WIDTH = {"float32": 4, "bfloat16": 2}
# Small steps of the same kinds first: they bring in the code and the pool. The peak is then set back, so that what the
# imports needed is not taken for the step's.
PROGRAM = """
import inspect
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
    shared = {{"rank": rank, "update_proj_gap": 3, **keys}}
    known = inspect.signature(METHODS[method]).parameters
    optimizer = METHODS[method]([weight], **{{key: shared[key] for key in shared if key in known}})
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


def rises(size: int, cases: list[tuple[Any, ...]]) -> list[list[int]]:
    """For each of `cases` how far the steps raise the memory of a process of their own."""
    code = PROGRAM.format(size=size, rank=RANK, cases=cases)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment["MALLOC_MMAP_THRESHOLD_"] = "65536"  # each tensor gets pages of its own, which go back when it does
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return [[int(number) for number in line.split()] for line in done.stdout.splitlines()]


needs_linux = pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs the peak that Linux keeps")


@needs_linux
def test_a_step_takes_no_copy_of_a_weight() -> None:
    low, single = SIZE * RANK * 4, SIZE * SIZE * 4
    for (dtype, *keys), (first, *between, refresh) in zip(CASES, rises(SIZE, CASES), strict=True):
        # The low-rank gradient, what a thread keeps, 2 % of the weight.
        allowed = 2 * low + step_bounds.workspaces(1) + SIZE * SIZE * WIDTH[dtype] // 50
        assert max(between) <= allowed, (dtype, keys, between)
        # The search's panels, of rank + 10 columns; a half-precision gradient once in the precision it is searched in.
        copied = 0 if dtype == "float32" else single
        assert max(first, refresh) <= copied + single // 2, (dtype, keys, first, refresh)


class Made(NamedTuple):
    """Matrices of the weight's size in float32 that a step makes beside its state, of a float32 and of a bfloat16
    weight: between searches, and at most in a first step or in one with a search."""

    between: tuple[float, float]
    at_most: tuple[float, float]


# A search's panels, and of half precision the gradient in the one it is searched in.
OTHERS = Made((0.0, 0.0), (0.5, 1.5))
# The table of docs/guides/memory.md.
WHOLE = {
    "flora": Made((0.0, 0.0), (1.0, 1.5)),
    "ldadam": Made((0.0, 2.0), (0.0, 2.0)),
    "scale": Made((0.0, 2.0), (0.0, 2.0)),
    "dct": Made((2.0, 4.0), (2.0, 4.0)),
    "trion": Made((0.0, 2.0), (1.0, 2.0)),
    "dion2": Made((0.25, 2.25), (0.75, 2.25)),
    "muon": Made((2.0, 3.0), (2.5, 3.0)),
}
# What makes them quick, and keeps the sizes as they are.
QUICK: dict[str, dict[str, Any]] = {
    **{name: {"ns_steps": 1} for name in ("trion", "dion2", "muon")},
    "sinkgd": {"iterations": 1},
    "flora": {"kappa": 3},
    "adarankgrad": {"max_rank": RANK},
}


@needs_linux
@pytest.mark.parametrize("dtype", WIDTH)
def test_what_each_method_makes_in_a_step(dtype: str) -> None:
    cases = [(dtype, QUICK.get(name, {}), name) for name in METHODS]
    low, single, half = SMALLER * RANK * 4, SMALLER * SMALLER * 4, dtype != "float32"
    for name, (first, *between, refresh) in zip(METHODS, rises(SMALLER, cases), strict=True):
        small = 2 * low + step_bounds.workspaces(1) + SMALLER * SMALLER * WIDTH[dtype] // 50
        made = WHOLE.get(name, OTHERS)
        assert max(between) <= made.between[half] * single + small, (name, [count / single for count in between])
        state = memory.estimate_state_bytes([(SMALLER, SMALLER)], name, rank=RANK, dtype=dtype)
        most = max(first - state, refresh)  # what begins a state counts as made
        assert most <= made.at_most[half] * single + small, (name, first / single, refresh / single)

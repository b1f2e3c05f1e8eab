"""A forked child computes, the same bits, whatever its parent ran before; the parent keeps its threads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CHILD = """
import os, signal, sys
import numpy as np
{imports}
import lowrank_core as lc
from lowrank_core import _core

def work():
    {work}

def child(body):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)  # instead of waiting for ever
        os._exit(0 if body() else 1)
    return os.waitpid(pid, 0)[1] == 0

def threads():
    return len(os.listdir("/proc/self/task"))

_core.set_num_threads(3)
{before}
expected = {expected}
right = lambda: work() == expected if expected else len(work()) > 0
assert child(lambda: right() and _core.num_threads() == 1), "child"
assert child(lambda: child(right) and right()), "child of a child"
assert _core.num_threads() == 3 and right() and threads() >= 3, "parent"
print("end")
"""
TORCH = "import torch; torch.set_num_threads(3)"
PRODUCT = "torch.ones(1 << 22).mul_(2.0); torch.ones(600, 600) @ torch.ones(600, 600)"
SVD = """
    a = np.random.default_rng(0).standard_normal((300, 200))
    u, s, vh = lc.rsvd(a, 16)
    return u.tobytes() + s.tobytes() + vh.tobytes() + lc.dct(a, dim=0).tobytes()
"""
STEP = """
    make = lambda *shape: torch.from_numpy(np.ones(shape, np.float32))  # torch's own threads would hang
    w, basis, moments = make(300, 200), torch.from_numpy(np.eye(300, 16)), ([make(16, 200)], [make(16, 200)])
    assert lc.subspace_step_([w], [make(300, 200)], [basis], *moments, sides=["left"], steps=[1], lr=0.1)
    return w.numpy().tobytes()
"""
CASES = {
    "without torch": ("", "", SVD, "work()"),
    "with torch": (TORCH, "", SVD, "work()"),
    "after torch's threads": (TORCH, PRODUCT, SVD, "work()"),
    "after torch's threads alone": (TORCH, PRODUCT, SVD, "None"),
    "a step": (TORCH, "", STEP, "work()"),
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("name", CASES)
def test_a_forked_child_computes(name: str) -> None:
    imports, before, work, expected = CASES[name]
    code = CHILD.format(imports=imports, before=before, work=work.strip(), expected=expected)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env={**os.environ})
    assert (done.returncode, done.stdout.split()) == (0, ["end"]), done.stderr[-2000:]

"""Nothing of the size of all scores, nor of a weight: the peak of a process that takes one large call."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from testing import step_bounds

LENGTH, DEPTH, RANK, FLOAT = 8192, 16, 8, 4
FEATURES = 153  # monomials up to degree 2 in 16 variables
PARTS = 8  # sums of the chain that exist at a time
ROWS = 512  # of face-splitting products that a thread holds
STATUS = """
import numpy as np, lowrank_core
def status(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024
number = np.random.default_rng(0)
def normal(*shape):
    return number.standard_normal(shape, dtype=np.float32)
"""
ATTENTION = (
    STATUS
    + """
def take(length):
    q, k, v, g = (normal(length, {depth}) for _ in range(4))
    a, b, w = normal({rank}, {depth}), normal({depth}, {rank}), np.eye({depth}, dtype=np.float32)
    before = status("VmRSS")
    lowrank_core.attention_lora_grad(q * 0.001, k, v, g, a, b, weight=w, scale=0.1, causal={causal}, method={method!r})
    return status("VmHWM") - before
take(64)
print(take({length}))
"""
)
LAYER = (
    STATUS
    + """
import torch
def take(size):
    x, w = torch.from_numpy(normal({tokens}, size)).requires_grad_(), torch.full((size, size), 0.5)
    a, b, u, v = (torch.from_numpy(normal(*s)).requires_grad_() for s in (({rank}, size),) + ((size, {rank}),) * 3)
    s = torch.eye({rank}).requires_grad_()
    before = status("VmRSS")
    y = lowrank_core.lora_linear(x, w, a, b, scale=0.5) + lowrank_core.usv_linear(x, w, u, s, v, scale=0.5)
    y.sum().backward()
    return status("VmHWM") - before
take(64)
print(take({size}))
"""
)


def peak(code: str) -> int:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


needs_linux = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs the peak that Linux keeps")


@needs_linux
@pytest.mark.parametrize("method", ("exact", "chained"))
@pytest.mark.parametrize("causal", (False, True))
def test_attention_is_linear_in_its_length(method: str, causal: bool) -> None:
    """Queries, keys, values and dout, each at most in four copies; the features of both sides and what they are summed
    into. All scores would be 40 times as much."""
    found = peak(ATTENTION.format(length=LENGTH, depth=DEPTH, rank=RANK, causal=causal, method=method))
    faces = (DEPTH + 1) * RANK
    chained = 2 * LENGTH * FEATURES + PARTS * FEATURES * faces + ROWS * faces + 4 * LENGTH * (DEPTH + RANK)
    numbers = 4 * 4 * LENGTH * DEPTH + (chained if method == "chained" else 0)
    allowed = numbers * FLOAT + step_bounds.workspaces(1)
    assert allowed < LENGTH * LENGTH * FLOAT / 8
    assert found <= allowed, f"{found} bytes, more than {allowed}"


@needs_linux
def test_layers_hold_nothing_of_the_weights_size() -> None:
    """Activations of a few tokens and the factors; the weight itself was there before."""
    size, tokens = 4096, 8
    found = peak(LAYER.format(size=size, tokens=tokens, rank=RANK))
    numbers = 16 * tokens * size + 8 * size * RANK
    allowed = numbers * FLOAT + step_bounds.workspaces(1) + size * size * FLOAT // 8
    assert allowed < size * size * FLOAT
    assert found <= allowed, f"{found} bytes, more than {allowed}"

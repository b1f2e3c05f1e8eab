"""The bytes that `fused_backward` plans, and the peak of a process that trains with it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from layerwise_runs import backward, every_accumulating, keys
from lowrank_core.memory.geometry import FULL
from lowrank_core.memory.gradients import Way
from lowrank_core.memory.methods import METHODS as KEPT
from lowrank_core.memory.training import SKETCHED
from lowrank_core.optim import METHODS, fused_backward
from lowrank_core.optim.layerwise.held import way_of
from optim_cases import Case, Zoo, every_optimizer
from testing import step_bounds
from testing.gradients import bytes_held

LAYERS, SIZE, RANK = 12, 1024, 16
TAKE_A_RANK = [name for name, method in KEPT.items() if method.rank != FULL]
PROGRAM = """
import math
import torch
from lowrank_core.optim import {optimizer}, fused_backward

def status(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024

def risen(call):
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    before = status("VmRSS")
    call()
    return status("VmHWM") - before

def rises(fusing):
    layers = [torch.nn.Linear({size}, {size}, bias=False) for _ in range({layers})]
    model = torch.nn.Sequential(*layers, torch.nn.LayerNorm({size}))
    optimizer = {optimizer}(model.parameters(), rank={rank}, nonfinite="raise")
    handle = fused_backward(model, optimizer, **{keys}) if fusing else None
    found, steps = [], []
    for _ in range(4):
        losses = [model(torch.ones(2, {size})).square().mean() for _ in range({passes})]
        found.append(risen(lambda: [loss.backward() for loss in losses]))
        del losses
        steps.append(risen(optimizer.step))
        optimizer.zero_grad()
    return found, steps, handle.plan() if fusing else None

torch.manual_seed(0)
print(*rises(False)[0])
for found in rises(True):
    print(*found)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs the peak that Linux keeps")
@pytest.mark.parametrize(
    ("optimizer", "keys", "passes"),
    [
        ("GaLoreAdamW", {}, 1),
        ("GaLoreAdamW", {"max_norm": 1.0}, 3),
        ("FiraAdamW", {}, 1),
        ("FloraAdamW", {"max_norm": 1.0, "compressed": True}, 3),
    ],
)
def test_the_peak_falls_to_the_planned_share(optimizer: str, keys: dict, passes: int) -> None:
    code = PROGRAM.format(optimizer=optimizer, keys=keys, passes=passes, size=SIZE, layers=LAYERS, rank=RANK)
    # Each tensor gets pages of its own, which go back when it does.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    ordinary, fused, steps, plan = ([int(number) for number in line.split()] for line in done.stdout.splitlines())
    whole, held, due, passing = plan
    gradient, low = SIZE * SIZE * 4, RANK * SIZE * 4
    assert (whole, passing) == (LAYERS * gradient + 2 * SIZE * 4, gradient)
    compressed = "compressed" in keys
    sketches = LAYERS * 16 * SIZE * 4 if "max_norm" in keys and not compressed else 0
    inside = optimizer == "FiraAdamW"
    assert held == 2 * SIZE * 4 + (0 if inside else LAYERS * low + sketches)
    assert due == (held if compressed or inside else whole)
    assert min(ordinary[1:]) >= whole - passing  # one may find pages that are there
    # The gradient that passes, one more that a second backward adds, and the workspace of a thread.
    assert max(fused[1:]) <= held + 2 * passing + step_bounds.workspaces(1)
    assert max(fused[1:]) < 0.5 * min(ordinary[1:])
    if compressed:  # one gradient at a time is given back, beside a handful of matrices that Flora's step makes of it
        assert max(steps[1:]) < 0.5 * min(ordinary[1:])
        assert fused[0] <= held + 2 * passing + step_bounds.workspaces(1)


@every_optimizer
def test_the_plan_counts_what_is_held(case: Case) -> None:
    model = Zoo()
    del model.unused
    optimizer = case.make(model.parameters(), **keys(case))
    handle = fused_backward(model, optimizer)
    plan = handle.plan()
    assert plan.ordinary == sum(param.numel() * 4 for param in model.parameters())
    assert plan.passing == max(param.numel() * 4 for param in model.parameters())
    for step, planned in enumerate((plan.due, plan.held, plan.held, plan.due)):
        backward(model, step, 1)
        assert bytes_held(optimizer) == planned
        optimizer.step()
    assert bytes_held(optimizer) == 0
    assert 0 < plan.share <= 1


@every_accumulating
def test_the_plan_counts_sketches(case: Case) -> None:
    model = Zoo()
    del model.unused
    optimizer = case.make(model.parameters())
    handle = fused_backward(model, optimizer, max_norm=1.0)
    for step in range(2):
        backward(model, step, 2)
        found = bytes_held(optimizer)
        optimizer.step()
    assert found == handle.plan().held


@pytest.mark.parametrize("name", METHODS)
def test_the_registry_says_how_a_method_takes_gradients(name: str) -> None:
    weight = torch.nn.Parameter(torch.zeros(12, 8))
    optimizer = METHODS[name]([weight], **({"rank": 4} if name in TAKE_A_RANK else {}))
    ((_, group, slot),) = optimizer._slots()
    parts = optimizer._parts_of(group, slot)
    assert slot.geometry is not None and way_of(parts, True, due=False) is KEPT[name].way
    assert (way_of(parts, True, due=True, compressed=True) is Way.SKETCH) == (name in SKETCHED)

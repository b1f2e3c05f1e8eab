"""States that older versions saved load, and what follows is what followed then (tests/golden/make_states.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lowrank_core.memory.storage import FORMAT
from lowrank_core.optim import METHODS
from testing import golden
from testing.golden import BOUNDED, FILES

every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
bounded_file = pytest.mark.parametrize("path", BOUNDED, ids=lambda path: path.stem)
FORMAT_1 = {
    "float32", "float64", "bfloat16", "bfloat16-stochastic", "int8", "full", "rotate", "zeros", "longer-zeros"
}  # fmt: skip


def test_the_files_are_there() -> None:
    stems = {path.stem for path in FILES}
    assert stems >= {f"galore_adamw-format1-{name}" for name in FORMAT_1}
    written = {stem.partition("-format")[0] for stem in stems if f"-format{FORMAT}-" in stem}
    assert written == METHODS.keys(), "every method has a state of today's format: tests/golden/make_states.py"


def test_the_steps_that_follow_are_those_of_then() -> None:
    """Bit for bit on an x86-64 processor with the release of torch that wrote the file, but for weights that torch
    steps where its square root is another. Those, and all of them on another processor or with another torch, whose
    operations may round otherwise, within `golden.bound`."""
    tests = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, **golden.ENVIRONMENT, "PYTHONPATH": tests}
    command = [sys.executable, "-m", "testing.golden"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report.keys() == {path.name for path in FILES}
    for name, found in report.items():
        assert found["other bits"] == found["out of bound"] == [], name
        state = golden.load(golden.FOLDER / name)
        least = sum(golden.by_kernel(state, number) for number in range(len(state["weights"]))) * golden.alike(state)
        assert found["to the bit"] >= least, name


@bounded_file
def test_at_the_level_of_this_machine(path: Path) -> None:
    """Where sums are added in another order and products are fused: within the bound of two machines' roundings."""
    state = golden.load(path)
    assert golden.out_of_bound(state, golden.replay(state)) == []


@bounded_file
def test_a_refresh_is_among_the_steps(path: Path) -> None:
    """And the file's own weights would not pass for those of an optimizer that stands still."""
    state = golden.load(path)
    still = [weight.expand_as(after) for weight, after in zip(state["weights"], state["after"], strict=True)]
    assert len(golden.out_of_bound(state, still)) == sum(map(len, state["after"]))
    weights, optimizer = golden.fresh(state)
    optimizer.load_state_dict(state["optimizer"])
    before = sum(projection.refreshes for projection in optimizer.projections())
    golden.take(weights, optimizer, state["gradients"])
    assert sum(projection.refreshes for projection in optimizer.projections()) > before
    assert all(torch.isfinite(weight).all() for weight in weights)

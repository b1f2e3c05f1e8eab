"""Too little memory: told with the estimate's number, and the corrected command works in the same folder."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from cli_cases import at_step
from lowrank_core import tree_file
from lowrank_core.cli import checkpoint, memory
from lowrank_core.cli.config import TrainConfig
from lowrank_core.cli.resolve import resolve
from lowrank_core.cli.table import megabytes

LARGE = ("--dim", 2048, "--heads", 1)  # weights of 17 MB

# A process of its own: what an older one has freed would be room too, and there the run goes on to allocators that do
# not survive. 12 MB more than it has are too few for the first weight of a block.
TIGHT = """
import resource, sys
from pathlib import Path
import lowrank_core.cli.checkpoint, lowrank_core.cli.loop, lowrank_core.cli.report, lowrank_core.cli.train
mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + (12 << 20),) * 2)
sys.exit(lowrank_core.cli.main(sys.argv[1:]))
"""


def test_failed_allocation(tiny, cli, tmp_path):
    number = json.loads(cli("estimate", *LARGE[:2], "--layers", 1, "--ffn", 24, "--rank", 4, "--json").out)
    command = [sys.executable, "-c", TIGHT, *map(str, (*tiny, *LARGE, "--out", tmp_path))]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert outcome.returncode == 2 and outcome.stderr.count("\n") == 1, outcome.stderr
    assert "out of memory with galore" in outcome.stderr and "Traceback" not in outcome.stderr
    assert megabytes(number["bytes"][1]["total"]) in outcome.stderr
    assert (tmp_path / "run.json").exists()
    assert cli(*tiny, "--steps", 4, "--warmup", 1, "--out", tmp_path).code == 0
    assert json.loads((tmp_path / "summary.json").read_text())["config"]["dim"] == 16


def test_checkpoint_without_room(tmp_path, monkeypatch):
    """safetensors ends the process when an allocation of its own fails: asked for beforehand."""
    monkeypatch.setattr(tree_file, "to_bytes", lambda *_: pytest.fail("safetensors was called without room"))
    monkeypatch.setattr(tree_file, "_COPIES", 2**50)  # more than any address space holds
    with pytest.raises(RuntimeError) as failure:
        checkpoint.save(tmp_path / "x", {"weight": torch.zeros(1)})
    assert memory.is_out_of_memory(failure.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(2**50),
        lambda: torch.empty(2**62),
        lambda: np.empty(2**60, np.uint8),
        lambda: bytes(2**60),
    ],
)
def test_every_allocator_in_a_step(tiny, cli, tmp_path, allocate):
    with at_step(2, allocate):
        outcome = cli(*tiny, "--compare", "adamw", "--out", tmp_path)
    assert outcome.code == 2 and "out of memory with galore" in outcome.err and "Traceback" not in outcome.err


def test_other_failures_keep_their_traceback(tiny, cli, tmp_path):
    def fail():
        raise RuntimeError("a fault of the program")

    with at_step(2, fail), pytest.raises(RuntimeError, match="a fault of the program"):
        cli(*tiny, "--out", tmp_path)


def test_larger_run_of_a_comparison_decides(tiny, cli, tmp_path, monkeypatch):
    """AdamW's state does not fit: told before GaLore has trained for hours."""
    config = resolve(TrainConfig(compare=("adamw",)))
    galore, adamw = (memory.held_bytes(config, name) for name in ("galore", "adamw"))
    assert galore < adamw
    monkeypatch.setattr(memory, "limit_bytes", lambda: (galore + adamw) // 2)
    memory.check_fits(resolve(TrainConfig()))
    with pytest.raises(memory.CliError, match=f"of adamw take {megabytes(adamw)} .* more than the"):
        memory.check_fits(config)


def test_limits(monkeypatch, tmp_path):
    machine = memory.limit_bytes()
    assert 2**28 < machine <= memory._machine()
    monkeypatch.setattr(
        memory.resource, "getrlimit", lambda kind: (12345, -1) if kind == resource.RLIMIT_AS else (-1, -1)
    )
    assert memory.limit_bytes() == 12345
    assert list(memory._groups(tmp_path)) == []
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("4096\n")
    assert list(memory._groups(tmp_path)) == [4096]

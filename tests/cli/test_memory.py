"""Too little memory: told with the estimate's number, and the corrected command works in the same folder."""

from __future__ import annotations

import json
import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_cases import at_step
from lowrank_core.cli import memory
from lowrank_core.cli.config import TrainConfig, resolve
from lowrank_core.cli.table import megabytes

LARGE = ("--dim", 2048, "--heads", 1)  # 200 MB of weights


def address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


@contextmanager
def tight():
    """64 MB more than this process has already.

    For as short as can be: not every library survives an allocation that fails; safetensors ends the process.
    """
    import lowrank_core.cli.loop
    import lowrank_core.cli.report  # noqa: F401  (mapped before there is no room)

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + (64 << 20), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_failed_allocation(tiny, cli, tmp_path):
    number = json.loads(cli("estimate", *LARGE[:2], "--layers", 1, "--ffn", 24, "--rank", 4, "--json").out)
    with tight():
        outcome = cli(*tiny, *LARGE, "--out", tmp_path)
    assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome.err
    assert "out of memory with galore" in outcome.err and "Traceback" not in outcome.err
    assert megabytes(number["bytes"][1]["total"]) in outcome.err
    assert (tmp_path / "run.json").exists()
    assert cli(*tiny, "--steps", 4, "--warmup", 1, "--out", tmp_path).code == 0
    assert json.loads((tmp_path / "summary.json").read_text())["config"]["dim"] == 16


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
    config = resolve(TrainConfig(compare="adamw"))
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

"""What a run must leave the same however often it was interrupted. conftest.py, which needs no torch, reads `cli_cases`
instead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lowrank_core.cli import checkpoint
from lowrank_core.cli.metrics import read

TIMINGS = ("seconds", "tokens_per_s", "samples_per_s")


def final_state(folder: Path) -> dict[str, Any]:
    """Everything a finished run leaves that must not depend on interruptions: the checkpoints, lines and rows."""
    state: dict[str, Any] = {}
    for path in sorted(folder.glob("*.checkpoint.safetensors")):
        state[path.name] = checkpoint.load(path)
        state[path.name]["progress"].pop("seconds")
    lines = read(folder / "metrics.jsonl")
    for path in sorted(folder.glob("*.layers.jsonl")):
        state[path.name] = [{**row, "refresh_seconds": None} for row in map(json.loads, path.read_text().splitlines())]
    state["metrics"] = [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines]
    return state


def assert_same(one: Any, other: Any) -> None:
    """Equality to the bit, dtypes included, of nested containers with tensors."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other

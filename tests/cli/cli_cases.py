"""A run that takes a fraction of a second, and how to follow one in another process."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lowrank_core.cli import checkpoint
from lowrank_core.cli.metrics import read
from lowrank_core.cli.options import flag

TIMINGS = ("seconds", "tokens_per_s", "samples_per_s")
TEXT_WORDS = ("def", "return", "class", "self", "import", "for", "in", "if", "else", "while", "yield", "none", "true")


def flags(**options: object) -> list[str]:
    """`--name value` for each option."""
    return [word for name, value in options.items() for word in (flag(name), str(value))]


TINY = flags(
    dim=16, layers=1, heads=2, ffn=24, seq_len=16, batch_size=2, steps=24, warmup=3, eval_every=6, eval_batches=2,
    save_every=4, threads=1,
)  # fmt: skip
TINY_GALORE = [*TINY, *flags(rank=4, update_proj_gap=5, lr=0.01)]


def wait_for_lines(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Returns once the run in `folder` has logged `count` lines, or has ended."""
    path = folder / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < count):
        assert time.monotonic() < deadline, "the run logs nothing"
        time.sleep(0.002)


@contextmanager
def at_step(number: int, act: Callable[[], object]) -> Iterator[None]:
    """Calls `act` in every run of this process before the step after `number`."""
    from lowrank_core.cli.loop import Run

    step = Run.train_step

    def watched(run, log):
        if run.step == number:
            act()
        return step(run, log)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "train_step", watched)
        yield


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

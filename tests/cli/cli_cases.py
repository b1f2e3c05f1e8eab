"""A run that takes a fraction of a second, and how to follow one in another process."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lowrank_core.cli.options import flag

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

"""A run that takes a fraction of a second, and how to follow one in another process."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

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

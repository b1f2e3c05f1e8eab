"""Files of a run's folder: written whole or not at all, by one process at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lowrank_core import atomic
from lowrank_core.cli.errors import CliError

RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
REPORT_FILES = ("report.png", "report.html", "summary.json")
CHECKPOINT_SUFFIX = ".checkpoint.safetensors"
LAYERS_SUFFIX = ".layers.jsonl"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a failed write (full disk, no permission, a limit) into a sentence."""
    try:
        yield
    except OSError as failure:
        saved = any(path.parent.glob("*" + CHECKPOINT_SUFFIX))
        raise CliError(
            f"cannot write '{path}' ({failure.strerror}); "
            f"{'the last checkpoint is intact' if saved else 'there is no checkpoint yet'}: make room or fix the "
            f"permission, then {'continue with `--resume`' if saved else 'give the same command again'}"
        ) from failure


def write_atomic(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Replaces `path` by `data`, which may come in parts, whole or not at all.

    Raises:
      CliError: the write failed; `path` is as it was.
    """
    with writing(path):
        atomic.write_atomic(path, data)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Creates `folder` and holds it for this process; the kernel lets go however the process ends.

    Raises:
      CliError: it cannot be made or written, or another process trains in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as failure:
        reason = "a file" if folder.is_file() else failure.strerror
        raise CliError(
            f"`--out` must be a folder that can be written, got '{folder}' ({reason}); choose another"
        ) from failure
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as failure:
            raise CliError(f"another process trains in '{folder}'; wait for it, or choose another `--out`") from failure
        yield
    finally:
        os.close(handle)


def run_files(folder: Path) -> list[Path]:
    """What an earlier run left in `folder`, parts of interrupted writes included."""
    with reading(folder):
        return sorted(path for path in folder.iterdir() if is_run_file(path.name))


def is_run_file(name: str) -> bool:
    """Whether a run writes files of that name into its folder."""
    name = name.removesuffix(atomic.PART_SUFFIX)
    return name in (RUN_FILE, METRICS_FILE, *REPORT_FILES) or name.endswith((CHECKPOINT_SUFFIX, LAYERS_SUFFIX))


def holds_results(found: list[Path]) -> bool:
    """Whether `run_files` would be a loss: without a checkpoint or a report a resume starts from nothing too."""
    return any(path.name in REPORT_FILES or path.name.endswith(CHECKPOINT_SUFFIX) for path in found)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns a failed read (no permission, a folder in a file's place) into a sentence."""
    try:
        yield
    except OSError as failure:
        raise CliError(f"cannot read '{path}' ({failure.strerror}); make it readable") from failure

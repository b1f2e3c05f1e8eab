"""Files of a run's folder: written whole or not at all, by one process at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lowrank_core.cli.errors import CliError, writing

RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
REPORT_FILES = ("report.png", "report.html", "summary.json")
CHECKPOINT_SUFFIX = ".checkpoint.safetensors"


def write_atomic(path: Path, data: bytes) -> None:
    """Replaces `path` by `data`: at any moment, power cut included, it holds the old bytes or the new ones.

    Raises:
      CliError: the write failed; `path` is as it was.
    """
    part = path.with_name(path.name + ".tmp")
    with writing(path):
        try:
            with open(part, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
            _sync_folder(path.parent)
        except OSError:
            with suppress(OSError):
                part.unlink()
            raise


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable: it is an entry of the folder, not of the file."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
        raise CliError(
            f"`--out` must be a folder that can be written, got '{folder}' ({failure.strerror})"
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
    """What an earlier run left in `folder`."""
    names = (RUN_FILE, METRICS_FILE, *REPORT_FILES)
    return [folder / n for n in names if (folder / n).exists()] + sorted(folder.glob("*" + CHECKPOINT_SUFFIX))

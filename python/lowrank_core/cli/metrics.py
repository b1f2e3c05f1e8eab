"""`metrics.jsonl`: one JSON object a line, appended while training, cut back to the checkpoint on a resume."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from lowrank_core.cli.files import reading, write_atomic, writing

Line = dict[str, Any]


class MetricsLog:
    """Appends lines to `path`, one write each: a killed process leaves at most one broken line, the last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with writing(path):
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115  (closed by __exit__)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, **line: Any) -> None:
        """Appends one object; numbers that JSON does not know (inf, nan) become null."""
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        with writing(self._path):
            data = (json.dumps(plain) + "\n").encode()
            if self._file.write(data) != len(data):  # the last bytes of a disk were given, the rest refused
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sync(self) -> None:
        """Makes the lines durable."""
        with writing(self._path):
            os.fsync(self._file.fileno())


def read(path: Path) -> Iterator[Line]:
    """The whole lines of `path`, in order; broken ones are passed over, a missing file is empty."""
    with reading(path):
        if not path.exists():
            return
        with open(path, "rb") as file:
            for text in file:
                try:
                    line = json.loads(text)
                except (ValueError, RecursionError):
                    continue
                if isinstance(line, dict) and isinstance(line.get("run"), str) and isinstance(line.get("step"), int):
                    yield line


def cut_back(path: Path, run: str, step: int) -> int:
    """Drops what the resumed `run` will write again: its lines beyond `step`, the step of its checkpoint.

    Returns how many of its steps until then have no line: a log that was lost or damaged since.
    """
    kept = [line for line in read(path) if line["run"] != run or line["step"] <= step]
    write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
    logged = {line["step"] for line in kept if line["run"] == run and line.get("event") == "train"}
    return max(0, step) - len(logged)

"""The file of a `Monitor`, a line of JSON for each row, which is read line by line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO

from lowrank_core.atomic import write_atomic
from lowrank_core.optim.monitor_rows import Row, row_of


def lines_of(path: Path) -> Iterator[tuple[str, Row | None]]:
    """Each line of `path`, and the row that it is; a last line without an end was being written when its run ended."""
    with open(path, encoding="utf-8", errors="replace", newline="\n") as file:
        for line in file:
            yield line, row_of(line) if line.endswith("\n") else None


def opened(path: Path, steps: int) -> tuple[IO[str], dict[str, float | None]]:
    """The file, to be appended to, without what an earlier run wrote of steps that come again, and its last overlaps.

    Raises:
      ValueError: it holds something else than rows.
    """
    overlaps: dict[str, float | None] = {}
    shorter = False
    for line, row in lines_of(path) if path.exists() else ():
        if row is None and line.endswith("\n"):
            raise ValueError(f"Monitor: `path` must be a new file or one of a Monitor, got '{path}' with other lines")
        if row is None or row["step"] > steps:
            shorter = True
        else:
            overlaps[row["name"]] = row["overlap"]
    if shorter:
        write_atomic(path, (line.encode() for line, row in lines_of(path) if row is not None and row["step"] <= steps))
    return open(path, "a", encoding="utf-8"), overlaps

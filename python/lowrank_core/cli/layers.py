"""`NAME.layers.jsonl`: what an optimizer does to each layer of a run, the rows of a `Monitor`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_core.cli.files import LAYERS_SUFFIX, reading, write_atomic, writing

if TYPE_CHECKING:
    import torch

Row = dict[str, Any]


class LayerLog:
    """The file of one optimizer while it trains; `path` None where it has none."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    @contextmanager
    def written(self) -> Iterator[None]:
        """Around a step: a full disk becomes a sentence."""
        if self.path is None:
            yield
        else:
            with writing(self.path):
                yield

    def sync(self) -> None:
        """Makes the rows durable, as a checkpoint must never be ahead of them."""
        if self.path is not None:
            with writing(self.path), open(self.path, "rb") as file:
                os.fsync(file.fileno())


@contextmanager
def recorded(name: str, optimizer: torch.optim.Optimizer, folder: Path, every: int | None) -> Iterator[LayerLog]:
    """Records each `every`-th step of `optimizer`, None or 0 for none, into its file in `folder`.

    What the file holds of steps that come again is cut off; what it lacks of those that are done is said.
    """
    from lowrank_core.optim import Monitor
    from lowrank_core.optim.base import StateOptimizer

    path = folder / (name + LAYERS_SUFFIX)
    if not every or not isinstance(optimizer, StateOptimizer):
        yield LayerLog(None)
        return
    broken = _mend(path)
    with writing(path):
        monitor = Monitor(optimizer, every=every, path=path, keep=1)  # the file is what is read
    with monitor:
        wanted = monitor.steps // every
        missing = wanted - len({row["step"] for _, row in _lines(path) if row is not None})
        if broken or missing > 0:
            print(
                f"note: {path.name} has lost {broken} lines and all of {max(0, missing)} of the {wanted} records that "
                f"{name} has made (it was damaged); what is computed stays the same, but the report lacks them",
                file=sys.stderr,
            )
        yield LayerLog(path)


def read(path: Path) -> list[Row]:
    """The rows of `path`, in order; broken lines are passed over, a missing file is empty."""
    return [row for _, row in _lines(path) if row is not None]


def _mend(path: Path) -> int:
    """Takes the lines out of `path` that are no rows; returns how many. An unfinished last one does not count."""
    no_rows = [text.endswith("\n") for text, row in _lines(path) if row is None]
    if no_rows:
        write_atomic(path, (text.encode() for text, row in _lines(path) if row is not None))
    return sum(no_rows)


def _lines(path: Path) -> Iterator[tuple[str, Row | None]]:
    """Each line, and the row that it is."""
    from lowrank_core.optim.monitor_file import lines_of

    with reading(path):
        if path.exists():
            yield from lines_of(path)

"""Telemetry: what each layer of an optimizer does, step by step."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from lowrank_core.checks import is_count, require
from lowrank_core.memory.geometry import is_matrix
from lowrank_core.optim.devices import stays_on_device
from lowrank_core.optim.layer_plot import plot_layers
from lowrank_core.optim.monitor_file import opened
from lowrank_core.optim.monitor_rows import KEYS, Kept, Record, Row
from lowrank_core.optim.slots import Key, Slot
from lowrank_core.optim.watched import Watched

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Monitor:
    """Records what an optimizer does to each matrix: its subspace, what that holds, how far the weight moved.

    It attaches itself to the optimizer's steps; the loop stays as it is. A record comes after every step whose number
    is a multiple of `every`; steps that were skipped have none. Nothing waits for an accelerator before `rows` is read;
    a `path` or a `writer` read each record when it comes. A step that is recorded holds a copy of the matrices. The
    newest `keep` rows stay in memory, of about 300 bytes each; a file has all.

    One row, a dict, for each weight of two or more dimensions that has been stepped:
      step: its finished steps; of torch's optimizers and within a `LISA` the optimizer's.
      name: of the parameter; of a matrix in a stack with its number, as in "experts.up[3]".
      rank: of its subspace; None where it is not projected.
      captured: share in [0, 1] of the gradient's energy that the subspace held when it was found; None where nothing
        measures it.
      overlap: mean squared cosine in [0, 1] of the principal angles between the subspace before and the one held; None
        before a second one.
      refreshes: how many subspaces it has had.
      refresh_seconds: the host's time of its searches since the record before; the time of a common search is shared by
        the sizes of its matrices.
      update_ratio: |dW|_F / |W|_F of this step, rate and decay included; None for a weight of zeros.

    Args:
      optimizer: of this package, a `LISA` over any, or one of torch such as AdamW, whose rows tell of the update alone,
        for what has a gradient when the step is over.
      every: >= 1, steps from one record to the next.
      path: of a file that gets each row as a line of JSON, at once. Of a file that is there the lines up to the
        optimizer's step are kept: those behind it are of steps that a resumed run takes again.
      writer: a torch.utils.tensorboard.SummaryWriter, or what has its `add_scalar`; it gets "name/key".
      keep: >= 1, rows that `rows` holds at most.

    Raises:
      TypeError: `optimizer` is no optimizer that has torch's hooks.
      ValueError: `every` or `keep` is no int >= 1, or `path` holds something else than such lines. Nothing is changed
        then.

    Example:
      >>> import torch
      >>> from lowrank_core.optim import GaLoreAdamW, Monitor
      >>> layer = torch.nn.Linear(64, 32)
      >>> optimizer = GaLoreAdamW(layer.named_parameters(), lr=0.01, rank=8)
      >>> with Monitor(optimizer) as monitor:
      ...     layer(torch.ones(4, 64)).square().mean().backward()
      ...     optimizer.step()
      >>> [(row["name"], row["rank"], row["refreshes"]) for row in monitor.rows]
      [('weight', 8, 1)]
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        every: int = 1,
        path: str | os.PathLike[str] | None = None,
        writer: SummaryWriter | None = None,
        keep: int = 100_000,
    ) -> None:
        if not hasattr(optimizer, "_optimizer_step_post_hooks"):  # which wrappers of other packages lack
            got = type(optimizer).__name__
            raise TypeError(f"Monitor: `optimizer` must be an optimizer of torch or lowrank_core, got {got}; pass that")
        require(is_count(every, 1), "Monitor", "every", "be an int >= 1", every)
        require(is_count(keep, 1), "Monitor", "keep", "be an int >= 1", keep)
        self._watched, self._every, self._writer = Watched(optimizer), every, writer
        self._kept = Kept(keep)
        self._before: dict[Slot, tuple[int, Tensor]] = {}
        self._overlaps: dict[Key, Tensor] = {}
        self._seconds: dict[Key, float] = defaultdict(float)
        self._path = None if path is None else Path(path)
        self._file: IO[str] | None = None
        if self._path is not None:
            self._file, overlaps = opened(self._path, self.steps)
            self._take_up(overlaps)
        hooked = self._watched.optimizer
        self._hooks = [
            hooked.register_step_pre_hook(lambda *_: self._start()),
            hooked.register_step_post_hook(lambda *_: self._finish()),
        ]
        if self._watched.ours is not None:
            self._watched.ours.watches = (*self._watched.ours.watches, self)

    @property
    def rows(self) -> list[Row]:
        """The newest `keep` rows, in order, as copies. Waits for an accelerator."""
        return self._kept.newest()

    @property
    def recorded(self) -> int:
        """How many rows there have been, kept or not."""
        return self._kept.count

    def newest(self, count: int) -> list[Row]:
        """The last `count` of `rows`, without copying the others. Waits for an accelerator."""
        return self._kept.newest(count)

    @property
    def steps(self) -> int:
        """The most steps that a matrix has taken, recorded or not."""
        return self._watched.steps(self._matrices())

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws all rows of its file into `path`, or `rows` where it has none; see `plot_layers`.

        Waits for an accelerator.
        """
        plot_layers(self.rows if self._path is None else self._path, path)

    def close(self) -> None:
        """Detaches it from the optimizer and closes its file. `rows` stay."""
        for hook in self._hooks:
            hook.remove()
        if self._watched.ours is not None:
            self._watched.ours.watches = tuple(watch for watch in self._watched.ours.watches if watch is not self)
        self._before.clear()
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def turned(self, slot: Slot, overlap: Tensor) -> None:
        """Told by the optimizer; see `Watch`."""
        self._overlaps[slot.key] = overlap

    def searched(self, slots: Sequence[Slot], seconds: float) -> None:
        """Told by the optimizer; see `Watch`."""
        total = sum(slot.weight.numel() for slot in slots)
        for slot in slots:
            self._seconds[slot.key] += seconds * slot.weight.numel() / total

    def _matrices(self) -> Iterator[Slot]:
        for slot in self._watched.slots():
            if is_matrix(slot.shape) and slot.param.requires_grad:
                yield slot

    def _take_up(self, overlaps: Mapping[str, float | None]) -> None:
        """The overlaps of the last searches by name, which the optimizer's state does not hold."""
        for slot in self._matrices():
            if (last := overlaps.get(slot.name)) is not None:
                self._overlaps[slot.key] = torch.tensor(last, dtype=torch.float64)

    @_disable_dynamo  # as the step itself is: see `LowRankOptimizer._take`
    @torch.no_grad()
    def _start(self) -> None:
        self._before.clear()
        if (self.steps + 1) % self._every == 0:
            for slot in self._matrices():
                self._before[slot] = self._watched.finished(slot), slot.weight.detach().clone()

    @_disable_dynamo
    @torch.no_grad()
    def _finish(self) -> None:
        came = []
        for slot, (steps, weight) in self._before.items():
            number = self._watched.number(slot, steps)
            if number is not None:
                came.append(self._row(slot, number, weight))
        self._watched.ended()
        self._before.clear()
        record, told = Record.of(came), self._file is not None or self._writer is not None
        if told or not any(stays_on_device(values) for _, values in record.waiting):
            record.read()
        if told:
            self._tell(record.rows)
        self._kept.add(record)

    def _row(self, slot: Slot, step: int, before: Tensor) -> tuple[Row, dict[str, Tensor]]:
        state, projected = self._watched.state(slot), slot.geometry is not None
        refreshes = state.get("proj.refreshes", 0)
        row: Row = dict.fromkeys(KEYS)
        row |= {
            "step": step,
            "name": slot.name,
            "rank": state["proj.rank"] if projected else None,
            "refreshes": refreshes,
            "refresh_seconds": self._seconds.pop(slot.key, 0.0),
        }
        waiting = {"update_ratio": _norm(slot.weight - before) / _norm(before)}
        if projected and refreshes and "proj.captured" in state:
            waiting["captured"] = state["proj.captured"]
        if slot.key in self._overlaps:
            waiting["overlap"] = self._overlaps[slot.key]
        return row, waiting

    def _tell(self, rows: list[Row]) -> None:
        if self._file is not None:
            self._file.writelines(json.dumps(row) + "\n" for row in rows)
            self._file.flush()
        if self._writer is not None:
            for row in rows:
                for key in KEYS[2:]:
                    if row[key] is not None:
                        self._writer.add_scalar(f"{row['name']}/{key}", row[key], row["step"])


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dtype=torch.float64)
    return norm

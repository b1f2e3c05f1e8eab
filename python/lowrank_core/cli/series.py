"""What the report draws of one optimizer, read from the files of its run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from lowrank_core.cli import layers, metrics
from lowrank_core.cli.files import LAYERS_SUFFIX, METRICS_FILE
from lowrank_core.cli.metrics import Line

Row = dict[str, Any]
SETTLED = (0.15, 0.5)  # shares of the steps after which validation and training decide what a plot of losses shows


@dataclass(frozen=True)
class Series:
    """One optimizer: its row of the table, its lines of metrics.jsonl, its rows of layers."""

    row: Row
    train: list[Line]
    val: list[Line]
    layers: list[Row]
    bytes_per_step: int

    @property
    def name(self) -> str:
        """As the command line knows it."""
        return str(self.row["optimizer"])

    def searching(self) -> tuple[list[int], list[float]]:
        """The recorded steps, and the share of the wall-clock time since the record before that searches took."""
        wall = self._walls()
        seconds: dict[int, float] = {}
        for row in self.layers:
            seconds[row["step"]] = seconds.get(row["step"], 0.0) + row["refresh_seconds"]
        steps, shares, before = [], [], 0
        for step, spent in seconds.items():
            taken = math.fsum(wall.get(one, 0.0) for one in range(before + 1, step + 1))
            before = step
            if taken:  # a step without a line takes none
                steps.append(step)
                shares.append(spent / taken)
        return steps, shares

    def summary(self) -> Row | None:
        """What the layers did, plain values: medians over them at the last record, searches, their wall-clock seconds.

        None where nothing was recorded.
        """
        if not self.layers:
            return None
        last = [row for row in self.layers if row["step"] == self.layers[-1]["step"]]
        seconds, wall = math.fsum(row["refresh_seconds"] for row in self.layers), math.fsum(self._walls().values())
        found = {key: [row[key] for row in last if row[key] is not None] for key in FIGURES}
        return {
            "matrices": len(last),
            "projected": len(found["rank"]),
            **{key: median(values) if values else None for key, values in found.items()},
            "refreshes": sum(row["refreshes"] for row in last),
            "refresh_seconds": seconds,
            "refresh_share": seconds / wall if wall else None,
        }

    def _walls(self) -> dict[int, float]:
        """Seconds of the wall clock of each step: pauses between two parts of a run are in none."""
        return {x["step"]: self.bytes_per_step / x["tokens_per_s"] for x in self.train if x.get("tokens_per_s")}


FIGURES = ("rank", "captured", "overlap", "update_ratio")


def series(folder: Path, rows: Sequence[Row], bytes_per_step: int) -> list[Series]:
    """Of each row of the table."""
    lines = list(metrics.read(folder / METRICS_FILE))
    found = []
    for row in rows:
        name = row["optimizer"]
        train, val = ([x for x in lines if x["run"] == name and x["event"] == event] for event in ("train", "eval"))
        found.append(Series(row, train, val, layers.read(folder / (name + LAYERS_SUFFIX)), bytes_per_step))
    return found


class Band(NamedTuple):
    """One figure over the layers at each recorded step: its least, its median, its greatest."""

    steps: list[int]
    low: list[float]
    middle: list[float]
    high: list[float]


def band(rows: Iterable[Row], key: str) -> Band:
    """Of the figure `key`; layers and steps that have none are passed over."""
    values: dict[int, list[float]] = {}
    for row in rows:
        if row[key] is not None:
            values.setdefault(row["step"], []).append(row[key])
    found = values.values()
    return Band(list(values), [min(some) for some in found], [median(some) for some in found], [*map(max, found)])


def smoothed(values: Iterable[float | None], keep: float = 0.9) -> list[float]:
    """Exponential moving average, corrected for its start; values that are not numbers are passed over."""
    mean = weight = 0.0
    out = []
    for value in values:
        if value is not None:
            mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(mean / weight if weight else math.nan)
    return out


def loss_limits(all_series: Iterable[Series]) -> tuple[float, float] | None:
    """Ends of the axis of losses: those of all curves without their beginning, which falls from far above.

    None where there are no losses.
    """
    seen: list[float] = []
    for one in all_series:
        train = smoothed(x["train_loss"] for x in one.train)
        curves = (
            [(x["step"], x["val_loss"]) for x in one.val],
            [*zip((x["step"] for x in one.train), train, strict=True)],
        )
        last = max((step for curve in curves for step, _ in curve), default=0)
        for curve, settled in zip(curves, SETTLED, strict=True):
            known = [loss for step, loss in curve if step >= settled * last and loss is not None]
            seen += [loss for loss in known if math.isfinite(loss)]
    if not seen:
        return None
    low, high = min(seen), max(seen)
    room = 0.05 * (high - low) or 0.05 * high
    return low - room, high + room

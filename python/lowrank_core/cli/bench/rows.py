"""What was measured, as plain numbers and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from lowrank_core.cli.bench.entry import Entry, Times
from lowrank_core.cli.bench.rivals import ADAMW, GALORE_TORCH
from lowrank_core.cli.table import table

Peak = Mapping[str, int | None]  # bytes beyond weights, gradients and state, by the kind of step

_HEAD = (
    "step", "ms", "/ AdamW", "/ GaLore", "/ products", "first ms", "/ galore_torch", "refresh ms", "state MB",
    "/ AdamW", "peak MB",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One rival. Seconds are medians over rounds of whole `step()` calls, ratios medians of those within a round."""

    name: str
    source: str
    ours: bool
    rounds: int
    between_s: float  # a step that looks for no subspace
    quartiles_s: tuple[float, float]
    best_s: float
    of_adamw: float
    of_galore: float
    products_s: float | None  # of the products that the method cannot do without, where these are listed
    of_products: float | None
    first_s: float  # the first step: it looks for all subspaces and opens the state
    first_of_galore_torch: float | None
    refresh_s: float | None  # a step that looks for all subspaces, from those held
    state_bytes: int
    state_of_adamw: float
    low_rank_bytes: int | None  # of the low-rank gradients, in float32
    peak_bytes: Peak | None  # of a step, by its kind, beyond weights, gradients and state


def rows_of(entries: Sequence[Entry], peaks: Mapping[str, Peak]) -> list[Row]:
    """One for each entry; fused AdamW is among them."""
    by_name = {entry.rival.name: entry for entry in entries}
    theirs = by_name.get(GALORE_TORCH)
    return [
        Row(
            entry.rival.name,
            entry.rival.source,
            entry.rival.ours,
            len(entry.between),
            seconds(entry.between),
            _quartiles(entry.between),
            min(times.seconds for times in entry.between),
            median(times.seconds / times.adamw for times in entry.between),
            median(times.seconds / times.galore for times in entry.between),
            seconds(entry.products) if entry.products else None,
            _over(entry.between, entry.products),
            entry.first_s,
            entry.first_s / theirs.first_s if theirs and entry.rival.ours else None,
            seconds(entry.refresh) if entry.refresh else None,
            entry.state,
            entry.state / by_name[ADAMW].state,
            entry.low,
            peaks.get(entry.rival.name),
        )
        for entry in entries
    ]


def seconds(times: Sequence[Times]) -> float:
    """The median."""
    return median(one.seconds for one in times)


def _quartiles(times: Sequence[Times]) -> tuple[float, float]:
    values = [one.seconds for one in times]
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4)
    return low, high


def _over(steps: Sequence[Times], products: Sequence[Times]) -> float | None:
    return median(a.seconds / b.seconds for a, b in zip(steps, products, strict=True)) if products else None


def as_table(rows: Sequence[Row]) -> str:
    """Lines for the terminal."""
    return table(_HEAD, [_cells(row) for row in rows])


def _cells(row: Row) -> list[str]:
    peak = max((size for size in (row.peak_bytes or {}).values() if size is not None), default=None)
    return [
        row.name,
        _milliseconds(row.between_s),
        _ratio(row.of_adamw),
        _ratio(row.of_galore),
        _ratio(row.of_products),
        _milliseconds(row.first_s),
        _ratio(row.first_of_galore_torch, 3),
        _milliseconds(row.refresh_s),
        f"{row.state_bytes / 1e6:.1f}",
        _ratio(row.state_of_adamw, 3),
        "" if peak is None else f"{peak / 1e6:.1f}",
    ]


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{1e3 * value:.{2 if value < 0.1 else 0}f}"


def _ratio(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"

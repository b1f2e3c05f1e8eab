"""The plan: what an optimizer does with each parameter, and why, as rows and as a table."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from lowrank_core.memory.geometry import Geometry

EXCLUDED = ("embed", "lm_head")  # words in the names of what is left to plain AdamW by default


class PlanRow(NamedTuple):
    """How one parameter is treated."""

    name: str
    shape: tuple[int, ...]
    projected: bool  # False: plain AdamW
    side: str | None  # "left", "right", "both" or "whole"; None if not projected
    rank: int | None  # the effective rank; None if not projected, or if the optimizer's own rank is not known yet
    reason: str  # why it is not projected and what would change that, or a remark


def plan_row(name: str, shape: tuple[int, ...], where: Geometry | None, note: str, stacked: bool = False) -> PlanRow:
    """The row of a parameter that `place` put at `where` with `note`, or each of the matrices `stacked` in it."""
    side, rank = (None, None) if where is None else (where.side.name.lower(), where.rank)
    if stacked:
        note = ", ".join(filter(None, (f"a stack of {shape[0]} matrices", note)))
    return PlanRow(name, shape, where is not None, side, rank, note)


def numberless(name: str) -> str:
    """`name` with its numbers as `*`, the same for every layer of a stack."""
    return re.sub(r"\d+", "*", name)


def format_plan(rows: Iterable[PlanRow]) -> str:
    """The plan as a table; rows that differ only in the numbers of their names are one line with a count."""
    counts: dict[tuple[str, ...], int] = {}
    for entry in rows:
        cells = (
            numberless(entry.name),
            "x".join(map(str, entry.shape)) or "scalar",
            ("whole" if entry.side == "whole" else "projected") if entry.projected else "AdamW",
            entry.side or "-",
            ("default" if entry.projected else "-") if entry.rank is None else str(entry.rank),
            entry.reason,
        )
        counts[cells] = counts.get(cells, 0) + 1
    lines: list[tuple[str, ...]] = [("parameter", "count", "shape", "path", "side", "rank", "reason")]
    lines += [(name, str(count), *rest) for (name, *rest), count in counts.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)

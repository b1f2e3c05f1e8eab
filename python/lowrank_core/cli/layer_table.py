"""What the report says of the layers in words and numbers."""

from __future__ import annotations

import math

from lowrank_core.cli.page import html_table
from lowrank_core.cli.series import Row, Series

_HEAD = ("matrix", "rank", "captured", "overlap", "searches", "s of searches", "update / weight")


def layer_table(one: Series) -> str:
    """Each layer at the last record, and the seconds of all its searches."""
    spent: dict[str, list[float]] = {}
    for row in one.layers:
        spent.setdefault(row["name"], []).append(row["refresh_seconds"])
    last = {row["name"]: row for row in one.layers}
    return html_table(_HEAD, [_cells(row, math.fsum(spent[name])) for name, row in last.items()], "numbers")


def searched(one: Series) -> str:
    """How many matrices the method takes, their rank where it is one, and what its searches took."""
    found = one.summary()
    if found is None:
        return ""
    said = f"{found['matrices']} matrices, {found['projected']} of them taken by the method, the others by AdamW"
    if not found["refresh_seconds"]:
        return f"{said}; nothing is searched."
    ranks = {row["rank"] for row in one.layers} - {None}
    if len(ranks) == 1:
        said += f"; rank {ranks.pop():g}"
    share = "" if found["refresh_share"] is None else f", {100 * found['refresh_share']:.2g} % of the time of the steps"
    return f"{said}; {found['refreshes']} searches in {found['refresh_seconds']:.2g} s{share}."


def _cells(row: Row, seconds: float) -> tuple[str, ...]:
    captured, overlap = ("" if row[key] is None else f"{row[key]:.3f}" for key in ("captured", "overlap"))
    ratio = "" if row["update_ratio"] is None else f"{row['update_ratio']:.2e}"
    name, rank = row["name"].removesuffix(".weight"), "" if row["rank"] is None else f"{row['rank']:g}"
    searches = (str(row["refreshes"]), f"{seconds:.3f}") if row["refreshes"] else ("", "")
    return name, rank, captured, overlap, *searches, ratio

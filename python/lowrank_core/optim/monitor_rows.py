"""The rows of a `Monitor`, and how they are read from its lines of JSON."""

from __future__ import annotations

import json
import math
from typing import Any

KEYS = ("step", "name", "rank", "captured", "overlap", "refreshes", "refresh_seconds", "update_ratio")
_ALWAYS = ("refreshes", "refresh_seconds")  # which no row lacks; the other figures may be None

Row = dict[str, Any]


def row_of(line: str) -> Row | None:
    """The row that `line` is; None where it is something else."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or tuple(row) != KEYS:
        return None
    named = type(row["step"]) is int and isinstance(row["name"], str)
    return row if named and all(_is_figure(row[key], key) for key in KEYS[2:]) else None


def _is_figure(value: object, key: str) -> bool:
    return (type(value) in (int, float) and math.isfinite(value)) or (value is None and key not in _ALWAYS)  # type: ignore[arg-type]

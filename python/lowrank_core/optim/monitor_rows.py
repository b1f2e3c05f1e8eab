"""The rows of a `Monitor`: how many are kept, and how they are read from its lines of JSON."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

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


class Record(NamedTuple):
    """The rows of one step, whose values may still be on their way from a device: one tensor for all of a device."""

    rows: list[Row]
    waiting: list[tuple[list[tuple[int, str]], Tensor]]  # (row, key) of each value

    @classmethod
    def of(cls, rows: Sequence[tuple[Row, Mapping[str, Tensor]]]) -> Record:
        """Of rows, and of values by their keys."""
        found: dict[torch.device, tuple[list[tuple[int, str]], list[Tensor]]] = {}
        for i, (_, values) in enumerate(rows):
            for key, value in values.items():
                places, tensors = found.setdefault(value.device, ([], []))
                places.append((i, key))
                tensors.append(value.to(torch.float64))
        waiting = [(places, torch.stack(tensors)) for places, tensors in found.values()]
        return cls([row for row, _ in rows], waiting)

    def read(self) -> list[Row]:
        """The rows with their values; None for what is no finite number, which JSON does not know."""
        for places, values in self.waiting:
            for (i, key), value in zip(places, values.tolist(), strict=True):
                self.rows[i][key] = value if math.isfinite(value) else None
        self.waiting.clear()
        return self.rows


class Kept:
    """The newest `limit` rows: as tuples where they are read, else as records, of which one may reach beyond it."""

    def __init__(self, limit: int) -> None:
        self.count = 0  # of all rows that ever came
        self._limit, self._unread = limit, 0
        self._rows: deque[tuple[Any, ...]] = deque(maxlen=limit)
        self._records: deque[Record] = deque()

    def add(self, record: Record) -> None:
        self.count += len(record.rows)
        self._unread += len(record.rows)
        self._records.append(record)
        self._settle()
        while self._unread and self._unread - len(self._records[0].rows) >= self._limit:
            self._unread -= len(self._records.popleft().rows)
        while self._rows and len(self._rows) + self._unread > self._limit:
            self._rows.popleft()

    def newest(self, count: int | None = None) -> list[Row]:
        """The newest `count` of them, None for all, in order. Waits for an accelerator."""
        for record in self._records:
            record.read()
        self._settle()
        return [dict(zip(KEYS, values, strict=True)) for values in islice(reversed(self._rows), count)][::-1]

    def _settle(self) -> None:
        """Packs what has been read."""
        while self._records and not self._records[0].waiting:
            rows = self._records.popleft().rows
            self._unread -= len(rows)
            self._rows.extend(tuple(row.values()) for row in rows)

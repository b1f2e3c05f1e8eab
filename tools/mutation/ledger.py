"""What came of each mutant, kept in a file, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import TypedDict

from mutation.equivalent import EQUIVALENT
from mutation.mutant import Mutant


class Record(TypedDict):
    """One mutant and its end: caught, survived, unsettled (by the nearest tests) or stillborn (does not compile)."""

    path: str
    line: int
    kind: str
    origin: str  # "drawn", or the fault that was planted
    before: str
    after: str
    outcome: str
    by: str  # what caught it
    seconds: float


class Ledger:
    """The records of a file of lines of JSON, by the key of their mutant. Several runs may add to it at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self._records: dict[str, Record] = dict(json.loads(line) for line in lines)

    def get(self, key: str) -> Record | None:
        """The record of a mutant that was tried in a file as it is now."""
        return self._records.get(key)

    def put(self, key: str, record: Record) -> None:
        """Adds a record, and writes it at once."""
        self._records[key] = record
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([key, record], ensure_ascii=False) + "\n")

    def doubt(self, tests: Collection[str]) -> None:
        """What one of `tests` caught is settled no more."""
        for key, found in list(self._records.items()):
            if doubted(found, tests) is not found:
                self.put(key, doubted(found, tests))


def doubted(found: Record, tests: Collection[str]) -> Record:
    """Not settled if one of `tests`, which prove nothing, caught it; else as it is."""
    return {**found, "outcome": "unsettled", "by": ""} if found["by"] in tests else found


def record(mutant: Mutant, source: str, origin: str, outcome: str, by: str, seconds: float) -> Record:
    """The record of a mutant of `source`."""
    before, after = mutant.change(source)
    return {
        "path": mutant.path, "line": mutant.line(source), "kind": mutant.kind, "origin": origin, "before": before,
        "after": after, "outcome": outcome, "by": by, "seconds": round(seconds, 1),
    }  # fmt: skip


def proof(found: Record) -> str | None:
    """Why the mutant of a record is the same program; None for one that is another."""
    return EQUIVALENT.get((found["path"], found["before"], found["after"]))

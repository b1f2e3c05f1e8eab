"""Rows of text and label: read from files, parted, with a digest. Needs no torch: a wrong path is told at once."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from lowrank_core.cli.defaults import listed
from lowrank_core.cli.errors import CliError
from lowrank_core.cli.options import flag

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_LINES = (".jsonl", ".ndjson")
TABLES = (*_SEPARATORS, *_LINES)
_NUMBER, _TRUTH, _TEXT = "a number", "a truth value", "text"
_KINDS = {str: _TEXT, bool: _TRUTH, int: _NUMBER, float: _NUMBER, list: "a list", dict: "an object"}


class Row(NamedTuple):
    """A text, and its label where there are labels."""

    text: str
    label: str = ""


@dataclass(frozen=True)
class Parted:
    """Rows to train on and rows held out; `labels` sorted, `skipped` had no text, `sha256` covers both parts."""

    train: list[Row]
    val: list[Row]
    labels: tuple[str, ...]
    skipped: int
    sha256: str


def is_table(path: str) -> bool:
    """Whether the file has rows and columns, by its name."""
    return Path(path).suffix.lower() in TABLES


def read_tables(paths: Sequence[str], text: str, label: str | None) -> list[Row]:
    """The rows of CSV, TSV and JSONL files in order; `text` and `label` name columns, None for no labels.

    Raises:
      CliError: a file is missing or broken, or has no such column.
    """
    return [row for path in paths for row in _read(Path(path), text, label)]


def part(rows: Sequence[Row], val_fraction: float) -> Parted:
    """Holds out `val_fraction` of each label, at least one row; which rows follows from the texts alone.

    Texts that come again with the same label count once, so that none is on both sides.

    Raises:
      CliError: no text, or a label with fewer than two.
    """
    kept = sorted({row for row in rows if row.text.strip()}, key=_order)
    if not kept:
        raise CliError("`--data` must hold text, got none; name files with rows that have a text")
    by_label: dict[str, list[Row]] = {}
    for row in kept:
        by_label.setdefault(row.label, []).append(row)
    held: set[Row] = set()
    for name, some in by_label.items():
        if len(some) < 2:
            of = f" of the label {name!r}" if name else ""
            raise CliError(f"`--data` must hold at least two different texts{of}, got {len(some)}; add some")
        held |= set(some[: min(len(some) - 1, max(1, round(val_fraction * len(some))))])
    train, val = [row for row in kept if row not in held], [row for row in kept if row in held]
    facts = json.dumps([train, val]).encode()
    skipped = sum(not row.text.strip() for row in rows)
    return Parted(train, val, tuple(sorted(by_label)), skipped, hashlib.sha256(facts).hexdigest())


def check_labels(labels: Sequence[str]) -> None:
    """Raises CliError if there is nothing to tell apart."""
    if len(labels) < 2:
        raise CliError(f"`--data` must have at least two labels, got {len(labels)} ({', '.join(labels)}); add others")


def _order(row: Row) -> bytes:
    return hashlib.sha256(json.dumps(row).encode()).digest()


def _read(path: Path, text: str, label: str | None) -> Iterator[Row]:
    try:
        content = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as failure:
        raise CliError(f"`--data` must name files, got '{path}', which does not exist; correct it") from failure
    except OSError as failure:
        raise CliError(f"cannot read '{path}' ({failure.strerror}); make it readable or leave it out") from failure
    except UnicodeDecodeError as failure:
        raise CliError(f"`--data` must name UTF-8 text, got '{path}' ({failure.reason}); convert it") from failure
    records = list(_of_lines(path, content) if path.suffix.lower() in _LINES else _of_csv(path, content))
    kinds: dict[str, int] = {}
    for number, record in records:
        said = _text(path, number, record, text)
        yield Row(said) if label is None else Row(said, _label(path, number, record, label, kinds))


def _text(path: Path, number: int, record: dict[str, Any], column: str) -> str:
    value = _value(path, number, record, "text_column", column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise CliError(
            f"`{flag('text_column')}` must hold text, got {_KINDS[type(value)]} in line {number} of '{path}'; write it "
            "as text"
        )
    return value


def _label(path: Path, number: int, record: dict[str, Any], column: str, kinds: dict[str, int]) -> str:
    """As text, which equal numbers have in common; `kinds` has the lines in which each kind was met first."""
    value = _value(path, number, record, "label_column", column)
    if value in (None, ""):
        raise CliError(f"`--data` must have a label in each row, got none in line {number} of '{path}'; add it")
    kind = _KINDS[type(value)]
    if kind not in (_TEXT, _NUMBER, _TRUTH) or (isinstance(value, float) and not math.isfinite(value)):
        wrong = value if isinstance(value, float) else kind
        raise CliError(
            f"`{flag('label_column')}` must hold texts or numbers, got {wrong} in line {number} of '{path}'; correct it"
        )
    kinds.setdefault(kind, number)
    if len(kinds) > 1:
        (one, first), (other, second) = kinds.items()
        raise CliError(
            f"`{flag('label_column')}` must hold labels of one kind, got {one} in line {first} and {other} in line "
            f"{second} of '{path}'; write them alike"
        )
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).lower() if kind == _TRUTH else str(value)


def _value(path: Path, number: int, record: dict[str, Any], field: str, column: str) -> Any:
    if column not in record:
        known = f"has {listed(tuple(record))}" if record else "has no columns"
        raise CliError(f"`{flag(field)}` must name a column of '{path}', got {column!r}; line {number} {known}")
    return record[column]


def _of_csv(path: Path, content: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Cells that are missing at the end of a line are None."""
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=_SEPARATORS[path.suffix.lower()], strict=True)
    limit = csv.field_size_limit(len(content) + 1)  # of the process; a text may be as long as its file
    try:
        lines = [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as failure:
        raise CliError(f"'{path}' is no table ({failure}, line {reader.line_num}); correct it") from failure
    finally:
        csv.field_size_limit(limit)
    columns = lines[0][1] if lines else []
    if twice := [name for number, name in enumerate(columns) if name in columns[:number]]:
        raise CliError(f"'{path}' must name each column once, got {twice[0]!r} twice; rename one")
    for number, cells in lines[1:]:
        if len(cells) > len(columns):
            raise CliError(
                f"line {number} of '{path}' must have {len(columns)} cells, one for each column, got {len(cells)}; put "
                "what has a separator in quotes"
            )
        yield number, dict(zip_longest(columns, cells))


def _of_lines(path: Path, content: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as failure:
            raise CliError(f"line {number} of '{path}' is no JSON ({failure}); correct it") from failure
        if not isinstance(record, dict):
            raise CliError(f"line {number} of '{path}' must be an object with columns, got {type(record).__name__}")
        yield number, record

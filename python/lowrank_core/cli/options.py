"""Options that are declared once, as fields of a dataclass, with default, help and check."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import Field, field, fields
from typing import Any


def whole(low: int) -> Callable[[str], int]:
    """Parser of a whole number >= `low`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"must be a whole number >= {low}, got '{text}'")
        return value

    return parse


def real(low: float, high: float = math.inf, *, ends: str = "[]") -> Callable[[str], float]:
    """Parser of a finite number from `low` to `high`; a round bracket in `ends` shuts that end out."""
    above, below = ends[0] == "(", ends[1] == ")"
    rule = f"{'>' if above else '>='} {low:g}"
    if high < math.inf:
        rule += f" and {'<' if below else '<='} {high:g}"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        inside = (value > low if above else value >= low) and (value < high if below else value <= high)
        if not inside or math.isinf(value):
            raise argparse.ArgumentTypeError(f"must be a number {rule}, got '{text}'")
        return value

    return parse


def option(section: str, default: Any, text: str, *, shown: str | None = None, **parse: Any) -> Any:
    """A field that is an option; `shown` stands for the default in the help where that depends on others."""
    if "type" in parse:
        parse.setdefault("metavar", "N" if isinstance(default, int) else "X")
    return field(default=default, metadata={"section": section, "text": text, "shown": shown, "parse": parse})


def flag(name: str) -> str:
    """The option on the command line of a field: `seq_len` is `--seq-len`."""
    return "--" + name.replace("_", "-")


def add_options(parser: argparse.ArgumentParser, declared: Any) -> None:
    """Adds every field of the dataclass `declared`; options that are not given stay out of the namespace."""
    sections: dict[str, Any] = {}
    for item in fields(declared):
        section = item.metadata["section"]
        if section not in sections:
            sections[section] = parser.add_argument_group(section)
        shown = f"{item.metadata['text']} (default: {_shown(item)})"
        parse = item.metadata["parse"]
        sections[section].add_argument(flag(item.name), default=argparse.SUPPRESS, help=shown, **parse)


def _shown(item: Field[Any]) -> str:
    shown = item.metadata["shown"] or item.default
    return " ".join(map(str, shown)) if isinstance(shown, tuple) else str(shown)

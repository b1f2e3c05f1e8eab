"""Options that are declared once, as fields of a dataclass, with default, help and check."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import Field, field, fields
from typing import Any

LARGEST = 2**63 - 1  # what torch and NumPy count with
PRECISIONS = ("fp32", "bf16", "amp-bf16", "amp-fp16")  # of what trains a model


def whole(low: int, high: int = LARGEST) -> Callable[[str], int]:
    """Parser of a whole number from `low` to `high`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:  # no number, or one of thousands of digits
            value = high + 1 if text.isdecimal() else low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"must be a whole number >= {low}, got {quoted(text)}")
        if value > high:
            raise argparse.ArgumentTypeError(f"must be a whole number <= {high}, got {quoted(text)}")
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
            raise argparse.ArgumentTypeError(f"must be a number {rule}, got {quoted(text)}")
        return value

    return parse


def switch(text: str) -> bool:
    """Parser of yes or no."""
    found = {"yes": True, "no": False, str(True): True, str(False): False}.get(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"must be yes or no, got {quoted(text)}")
    return found


YES_OR_NO: dict[str, Any] = {"type": switch, "metavar": "yes|no"}


def path(text: str) -> str:
    """Parser of a path, which the file system itself must find or refuse."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"must name a file or a folder, got {quoted(text)}")
    return text


def quoted(text: str) -> str:
    """`text` in quotes, cut where it would fill the screen."""
    return f"'{text}'" if len(text) <= 60 else f"'{text[:40]}...' ({len(text)} characters)"


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


def check_values(config: Any) -> None:
    """Checks every field of a dataclass of options as if it had come from the command line.

    Raises:
      ValueError: one could not have; the sentence names it.
    """
    for item in fields(config):
        value, parse = getattr(config, item.name), item.metadata["parse"]
        if value is None and item.default is None:
            continue
        many = "nargs" in parse
        count = parse.get("nargs")
        fits = isinstance(value, tuple) is many and (not isinstance(count, int) or len(value) == count)
        if not fits or not all(_could_be_given(single, parse) for single in (value if many else (value,))):
            raise ValueError(f"{item.name} is {value!r}")


def _could_be_given(value: Any, parse: dict[str, Any]) -> bool:
    if "choices" in parse:
        return value in parse["choices"]
    try:
        found = parse["type"](str(value))
        return bool(found == value) and isinstance(found, bool) is isinstance(value, bool)
    except argparse.ArgumentTypeError:
        return False


def difference(one: dict[str, Any], other: dict[str, Any]) -> tuple[str, str, str] | None:
    """The first option of `one` whose value in `other` differs: its flag and both values in words."""
    for name, value in one.items():
        if value != other.get(name):
            return flag(name), in_words(value), in_words(other.get(name))
    return None


def in_words(value: Any) -> str:
    """The value of an option as a reader meets it."""
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return "unset" if value is None or not text else text

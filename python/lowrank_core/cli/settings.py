"""`--set METHOD.OPTION=VALUE`: options of one optimizer of a run that compares several."""

from __future__ import annotations

import argparse
import re
from dataclasses import fields
from functools import lru_cache
from typing import Any

from lowrank_core.cli.defaults import OPTIMIZERS, OWN, TUNED, listed, takers
from lowrank_core.cli.errors import CliError
from lowrank_core.cli.options import flag, quoted

Key = tuple[str, str]  # optimizer, field


def setting(text: str) -> str:
    """Parser of one setting; what it means is `read` once the other options are known."""
    if not re.fullmatch(r"[a-z0-9]+\.[a-z0-9-]+=\S+", text):
        raise argparse.ArgumentTypeError(f"must be METHOD.OPTION=VALUE, as in muon.lr=0.02, got {quoted(text)}")
    return text


@lru_cache
def read(texts: tuple[str, ...], declared: Any) -> dict[Key, Any]:
    """By optimizer and field, the values of settings; `declared` is the dataclass of all options.

    Raises:
      CliError: an optimizer, an option of it or a value that there is not, or one option twice.
    """
    parses = {item.name: item.metadata["parse"] for item in fields(declared)}
    found: dict[Key, Any] = {}
    for text in texts:
        left, _, right = text.partition("=")
        run, _, option = left.partition(".")
        name = option.replace("-", "_")
        if run not in OPTIMIZERS:
            raise CliError(f"`--set` must name an optimizer, {listed(OPTIMIZERS, 'or')}, got {quoted(run)}; name one")
        if name not in options_of(run):
            known = tuple(flag(one).removeprefix("--") for one in options_of(run))
            raise CliError(f"`--set {run}.` must name one of {listed(known)}, got {quoted(option)}; name one of them")
        if (run, name) in found:
            raise CliError(f"`--set {run}.{option}` must be given once, got it twice; leave one out")
        found[run, name] = _value(f"--set {run}.{option}", right, parses[name])
    return found


def options_of(run: str) -> tuple[str, ...]:
    """The fields that `--set` can say of the optimizer `run`."""
    return (*TUNED[run], *(("rank",) if run in takers("rank") else ()), *OWN[run])


def write(settings: dict[Key, Any]) -> tuple[str, ...]:
    """The inverse of `read`; what is None, a default of none, is left out."""
    return tuple(
        f"{label(*key).removeprefix('--set ')}={_words(value)}" for key, value in settings.items() if value is not None
    )


def label(run: str, name: str) -> str:
    """How `--set` names a field of an optimizer."""
    return f"--set {run}.{flag(name).removeprefix('--')}"


def changed(given: dict[Key, Any], stored: dict[Key, Any]) -> tuple[str, str, str] | None:
    """The first setting of `given` that `stored` has with another value: its label and both values in words."""
    for key, value in given.items():
        if (before := stored.get(key)) != value:
            return label(*key), _words(value), "unset" if before is None else _words(before)
    return None


def _words(value: Any) -> str:
    return ",".join(map(_word, value if isinstance(value, tuple) else [value]))


def _word(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _value(what: str, text: str, parse: dict[str, Any]) -> Any:
    many, convert = parse.get("nargs"), parse.get("type", str)
    parts = text.split(",") if many else [text]
    if many and len(parts) != many:
        raise CliError(f"`{what}` must have {many} values with commas between them, got {quoted(text)}")
    try:
        values = tuple(convert(part) for part in parts)
    except ValueError:  # of `int`, as choices have it
        values = (text,)
    except argparse.ArgumentTypeError as refusal:
        raise CliError(f"`{what}` {refusal}; correct it") from refusal
    choices = parse.get("choices")
    if choices is not None and values[0] not in choices:
        raise CliError(f"`{what}` must be {listed(tuple(map(str, choices)), 'or')}, got {quoted(text)}; choose one")
    return values if many else values[0]

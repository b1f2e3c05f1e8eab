"""A bar for what takes long."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TypeVar, cast

DELAY = 2.0  # seconds; what is done sooner shows no bar
T = TypeVar("T")


def progress(steps: Iterable[T], text: str) -> Iterable[T]:
    """`steps` with a bar of tqdm's on a terminal, or as they are where tqdm is not installed."""
    try:
        tqdm = import_module("tqdm").tqdm
    except ModuleNotFoundError:
        return steps
    return cast(Iterable[T], tqdm(steps, desc=text, disable=None, leave=False, delay=DELAY))

"""The one form of a refusal in `lowrank_core.optim`."""

from __future__ import annotations

import math
from collections.abc import Iterable


def require(met: bool, op: str, arg: str, rule: str, got: object, fix: str = "") -> None:
    """Raises ValueError ``<op>: `<arg>` must <rule>, got <got>; <fix>`` unless `met`."""
    if not met:
        raise ValueError(f"{op}: `{arg}` must {rule}, got {got!r}" + (f"; {fix}" if fix else ""))


def require_choice(op: str, arg: str, value: object, options: Iterable[str]) -> None:
    """Raises ValueError unless `value` is one of `options`."""
    options = tuple(options)
    require(isinstance(value, str) and value in options, op, arg, f"be one of {', '.join(options)}", value)


def is_count(value: object, least: int) -> bool:
    """True for an int (bool excluded) of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: object, least: float = -math.inf) -> bool:
    """True for a finite int or float (bool excluded) of at least `least`."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= least

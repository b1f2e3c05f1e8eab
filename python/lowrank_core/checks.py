"""The one form of a refusal in `lowrank_core.optim` and `lowrank_core.memory`."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class Refused(ValueError):
    """A refusal that does not know yet whom the user called; `called` puts that name in front."""

    def __init__(self, op: str, sentence: str) -> None:
        super().__init__(f"{op}: {sentence}")
        self.sentence = sentence


@contextmanager
def called(op: str) -> Iterator[None]:
    """Refusals of the parts inside are those of `op`: the class or function that the user called."""
    try:
        yield
    except Refused as refused:
        raise ValueError(f"{op}: {refused.sentence}") from None


def require(met: bool, op: str, arg: str, rule: str, got: object, fix: str = "") -> None:
    """Raises ValueError ``<op>: `<arg>` must <rule>, got <got>; <fix>`` unless `met`."""
    if not met:
        raise Refused(op, f"`{arg}` must {rule}, got {got!r}" + (f"; {fix}" if fix else ""))


def require_choice(op: str, arg: str, value: object, options: Iterable[str | None]) -> None:
    """Raises ValueError unless `value` is one of `options`."""
    options = tuple(options)
    known = value is None or isinstance(value, str)
    require(known and value in options, op, arg, f"be one of {', '.join(map(str, options))}", value)


def words_of(op: str, arg: str, value: str | Iterable[str]) -> tuple[str, ...]:
    """One word or several as a tuple; raises ValueError where there is no word in it, or an empty one."""
    words = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (value,)
    rule = "be a word or several, none of them empty"
    require(all(isinstance(word, str) and word for word in words), op, arg, rule, value)
    return words


def is_count(value: object, least: int) -> bool:
    """True for an integer of any library (bool excluded) of at least `least`."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= least


def is_number(value: object, least: float = -math.inf) -> bool:
    """True for a finite real number of any library (bool excluded) of at least `least`."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and math.isfinite(value) and float(value) >= least  # type: ignore[arg-type]

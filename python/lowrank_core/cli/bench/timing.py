"""Wall-clock seconds of calls that are compared with each other."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping

import numpy as np

Call = Callable[[], object]


def interleaved(
    calls: Mapping[str, Call],
    rounds: int,
    *,
    seconds: float = float("inf"),
    least: int = 5,
    before: Call = lambda: None,
    after: Call = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each call in each round.

    Calls take turns within a round, in random order, so that a busy machine slows them alike and nobody always runs
    after the same rival. Divide within a round.

    Args:
      rounds: how many; fewer once `seconds` have passed, but at least `least`.
      before, after: called around each call, outside of its time.
    """
    found: dict[str, list[float]] = {name: [] for name in calls}
    order, shuffle = list(calls), random.Random(0).shuffle
    started = time.perf_counter()
    for number in range(rounds):
        if number >= least and time.perf_counter() - started > seconds:
            break
        shuffle(order)
        for name in order:
            before()
            found[name].append(seconds_of(calls[name]))
            after()
    return found


def seconds_of(call: Call) -> float:
    """Of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def evicting(nbytes: int = 16 << 20) -> Call:
    """A call that copies so many bytes, so that nobody finds operands in this core's L2."""
    source = np.ones(max(1, nbytes // 2), dtype=np.uint8)
    target = np.zeros_like(source)
    return lambda: np.copyto(target, source)

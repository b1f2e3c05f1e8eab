"""Equal tuning: one option after the other from the best so far, until the best is interior or the runs are spent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

Point = dict[str, Any]
TRIALS = 12  # for everybody


@dataclass(frozen=True)
class Ladder:
    """Values of one option in order; `first` are tried in any case. The ends are the option's own limits."""

    option: str
    values: tuple[Any, ...]
    first: tuple[Any, ...]

    def neighbours(self, value: Any) -> tuple[Any, ...]:
        """The values beside `value`, and itself between them."""
        at = self.values.index(value)
        return self.values[max(0, at - 1) : at + 2]


class Tried(NamedTuple):
    """One run of a search: where, and its final loss, infinite where it diverged."""

    point: Point
    loss: float


def best(tried: list[Tried]) -> Tried:
    """The lowest loss; of equals the first."""
    return min(tried, key=lambda one: one.loss)


def walk(
    start: Point, ladders: tuple[Ladder, ...], loss: Callable[[Point], float], trials: int = TRIALS
) -> list[Tried]:
    """Everything that is tried, in order, at most `trials` points and none twice.

    Of each ladder its `first`, then the neighbours of the best so far until both have been tried, then the next ladder;
    what is left goes to neighbours of the final best. `loss` is asked in that order; what it raises ends the search.
    """
    tried: list[Tried] = []
    for point in islice(points(start, ladders, tried), trials):
        tried.append(Tried(point, loss(point)))
    return tried


def on_the_edge(ladders: tuple[Ladder, ...], tried: list[Tried]) -> list[str]:
    """Options whose best value is the smallest or largest that was tried, though its ladder goes on."""
    found = []
    for ladder in ladders:
        places = [ladder.values.index(one.point[ladder.option]) for one in tried if math.isfinite(one.loss)]
        at = ladder.values.index(best(tried).point[ladder.option])
        if places and ((at == min(places) and at > 0) or (at == max(places) and at < len(ladder.values) - 1)):
            found.append(ladder.option)
    return found


def at_an_end(ladders: tuple[Ladder, ...], tried: list[Tried]) -> list[str]:
    """Options of numbers whose best value is the first or last of its ladder, so that better ones may be beyond."""
    found = best(tried).point
    return [
        ladder.option
        for ladder in ladders
        if found[ladder.option] in (ladder.values[0], ladder.values[-1]) and not isinstance(ladder.values[0], str)
    ]


def points(start: Point, ladders: tuple[Ladder, ...], tried: list[Tried]) -> Iterator[Point]:
    """The next point of `walk`, given what has been `tried`, which grows between two calls."""

    def untried(ladder: Ladder, values: tuple[Any, ...], base: Point) -> Iterator[Point]:
        for value in values:
            point = {**base, ladder.option: value}
            if all(one.point != point for one in tried):
                yield point

    first = True
    while True:
        before = len(tried)
        for ladder in ladders:
            base = best(tried).point if tried else start
            if first:
                yield from untried(ladder, ladder.first, base)
            while point := next(_beside(untried, ladder, best(tried).point), None):
                yield point
        if len(tried) == before:
            return  # every neighbour of the best has been tried
        first = False


def _beside(untried: Callable[..., Iterator[Point]], ladder: Ladder, base: Point) -> Iterator[Point]:
    return untried(ladder, ladder.neighbours(base[ladder.option]), base)

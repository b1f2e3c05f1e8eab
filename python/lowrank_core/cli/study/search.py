"""A search whose trials are runs: it goes as far as the runs that are there, and says which one it lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from lowrank_core.cli.study.ladders import Ladder, Point, Tried, walk

T = TypeVar("T")


class NotMade(Exception):
    """A figure lacks the run `trial`."""

    def __init__(self, trial: Any) -> None:
        super().__init__(trial.name)
        self.trial = trial


def tried(start: Point, ladders: tuple[Ladder, ...], loss: Callable[[Point], float]) -> tuple[list[Tried], Any]:
    """The trials so far, in order, and the run that comes next, None where these are all.

    `loss` raises NotMade where the run is lacking.
    """
    made: list[Tried] = []

    def noted(point: Point) -> float:
        made.append(Tried(point, loss(point)))
        return made[-1].loss

    try:
        return walk(start, ladders, noted), None
    except NotMade as gap:
        return made, gap.trial


def known(figure: Callable[[], Iterable[T]]) -> Iterator[T]:
    """What `figure` consists of; nothing if that cannot be told yet."""
    try:
        yield from figure()
    except NotMade:
        return

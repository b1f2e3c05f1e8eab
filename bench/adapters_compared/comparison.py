"""What is run, in which order: a pure function of the runs that are there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from lowrank_core.cli.study.ladders import TRIALS, Point, Tried, best
from lowrank_core.cli.study.search import NotMade, known, tried

from adapters_compared.contenders import CONTENDERS, PEER, Contender
from adapters_compared.places import PLACES, Place
from adapters_compared.runs import Record, Runs
from adapters_compared.trial import Trial

TUNING_SEED = 0
SEEDS = (3, 4, 5, 6, 7)  # reported: nothing was tuned on them, nor a default chosen


@dataclass(frozen=True)
class Comparison:
    """The comparison over `runs`. Its figures raise NotMade where a run is lacking."""

    runs: Runs
    contenders: tuple[Contender, ...] = CONTENDERS
    places: tuple[Place, ...] = PLACES
    seeds: tuple[int, ...] = SEEDS

    def missing(self) -> Iterator[Trial]:
        """Runs that can be made now, the most wanted first; one may come twice."""
        return (trial for trial in self.wanted() if self.runs.find(trial) is None)

    def wanted(self) -> Iterator[Trial]:
        """All runs, as far as those that are there tell: one table after the other, line by line."""
        for place in self.places:
            for row in self.at(place):
                if place.own:
                    made, lacking = self.search(row, place)
                    yield from (self.trial(row, place, TUNING_SEED, one.point) for one in made)
                    if lacking is not None:
                        yield lacking
                yield from known(partial(self.reported, row, place))

    def most_runs(self) -> int:
        """An upper bound: a search may end before its last trial."""
        searched = sum(TRIALS for place in self.places if place.own for row in self.at(place) if row.ladders)
        return searched + sum(len(self.seeds[: place.seeds]) for place in self.places for _ in self.at(place))

    def at(self, place: Place) -> list[Contender]:
        """Those who take part there."""
        return [row for row in self.contenders if row.takes_part(place)]

    def row(self, name: str) -> Contender:
        """The contender of that name."""
        return next(row for row in self.contenders if row.name == name)

    def search(self, row: Contender, place: Place) -> tuple[list[Tried], Trial | None]:
        """Its trials so far, and the run that comes next; nothing where nothing is tuned."""
        if not row.ladders:
            return [], None
        return tried(row.point, row.ladders, lambda point: self.loss(self.trial(row, place, TUNING_SEED, point)))

    def point(self, row: Contender, place: Place) -> Point:
        """The options that it is reported with."""
        if row.of is not None:
            whose = self.row(row.of)
            found = self.point(whose, place)
            rates = next(ladder.values for ladder in whose.ladders if ladder.option == "lr")
            return {**found, "lr": rates[min(max(0, rates.index(found["lr"]) + row.rungs), len(rates) - 1)]}
        if not row.ladders:
            return row.point
        made, lacking = self.search(row, place._replace(task=place.tuned))
        if lacking is not None:
            raise NotMade(lacking)
        return best(made).point

    def reported(self, row: Contender, place: Place) -> list[Trial]:
        """One run for each seed."""
        point = self.point(row, place)
        return [self.trial(row, place, seed, point) for seed in self.seeds[: place.seeds]]

    def peers(self, place: Place) -> list[Trial]:
        """Those of tuned AdamW."""
        return self.reported(self.row(PEER), place)

    def record(self, trial: Trial) -> Record:
        """Its run."""
        record = self.runs.find(trial)
        if record is None:
            raise NotMade(trial)
        return record

    def loss(self, trial: Trial) -> float:
        """What tuning makes small: the share of the stream that was answered wrongly; infinite where it diverged."""
        online = self.record(trial)["online"]
        return math.inf if online is None else 1.0 - float(online)

    @staticmethod
    def trial(row: Contender, place: Place, seed: int, point: Point) -> Trial:
        """The run of `row` with the options of `point`."""
        return Trial(place.task, place.batch, seed, row.method, {**row.fixed, **point}, row.start)

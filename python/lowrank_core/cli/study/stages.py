"""What is run, in which order: a pure function of the runs that are there.

Every figure is asked of the store, and the first run that it lacks is raised. So the study goes on wherever it was
stopped, and what comes next is written down nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from lowrank_core.cli.study.contenders import ABLATIONS, CONTENDERS, Ablation, Contender, trial_of
from lowrank_core.cli.study.ladders import TRIALS, Point, Tried, best
from lowrank_core.cli.study.search import NotMade, known, tried
from lowrank_core.cli.study.sizes import LARGE, SMALL, Size, longer, thinner
from lowrank_core.cli.study.store import Store
from lowrank_core.cli.study.trial import Trial

TUNING_SEED = 0
SEEDS = (1, 2, 3, 4, 5)  # reported: none of them was tuned on
PEERS = ("adamw", "adamw, one rate")  # the first is what all are compared with
ABLATED = "galore"
FOLLOWED = 3  # best methods that are run for twice the steps and at half the rank
RATES = 3  # at the large size: the best and its neighbours


@dataclass(frozen=True)
class Study:
    """The comparison over the runs of `store`. Its figures raise NotMade where a run is lacking."""

    store: Store
    contenders: tuple[Contender, ...] = CONTENDERS
    small: Size = SMALL
    large: Size = LARGE
    seeds: tuple[int, ...] = SEEDS
    ablations: tuple[Ablation, ...] = ABLATIONS

    def missing(self) -> Iterator[Trial]:
        """Runs that can be made now, the most wanted first; one may come twice."""
        return (trial for trial in self.wanted() if self.store.find(trial) is None)

    def wanted(self) -> Iterator[Trial]:
        """All runs of the study, as far as those that are there tell.

        One line of the small table after the other, then the large one: wherever it stops, whole lines stand.
        """
        for row in self.contenders:
            yield from self._searched(row)
            yield from known(partial(self.runs, row, self.small))
            for variant in self.ablations if row.name == ABLATED else ():
                yield from known(partial(self.ablation, *variant[1:]))
        for size in (longer(self.small), thinner(self.small)):
            for row in known(self.followed):
                yield from known(partial(self.runs, row, size))
        for row in self.contenders:
            yield from known(partial(self.rates, row))
        for row in self.contenders:
            yield from known(partial(self.runs, row, self.large))

    def wanted_of(self, row: Contender, size: Size) -> Iterator[Trial]:
        """Those of `wanted` that tell of `row` at that size, for the table of it."""
        if size == self.small:
            yield from self._searched(row)
        else:
            yield from known(partial(self.rates, row))
        yield from known(partial(self.runs, row, size))

    def most_runs(self) -> int:
        """An upper bound: a search may end before its last trial, and runs may be the same."""
        each = TRIALS + RATES + 2 * len(self.seeds)
        followed = 2 * (len(PEERS) + FOLLOWED)
        return each * len(self.contenders) + (len(self.ablations) + followed) * len(self.seeds)

    def row(self, name: str) -> Contender:
        """The contender of that name."""
        return next(row for row in self.contenders if row.name == name)

    def tuning(self, row: Contender) -> list[Tried]:
        """Its trials at the small size, in order."""
        made, lacking = self._search(row)
        if lacking is not None:
            raise NotMade(lacking)
        return made

    def tried(self, row: Contender) -> tuple[list[Tried], bool]:
        """Its trials so far, and whether these are all."""
        made, lacking = self._search(row)
        return made, lacking is None

    def rates(self, row: Contender) -> list[Trial]:
        """At the large size: the best rate of the small one, and its neighbours."""
        point = best(self.tuning(row)).point
        return [self._tuned(row, self.large, {**point, "lr": lr}) for lr in row.ladder("lr").neighbours(point["lr"])]

    def point(self, row: Contender, size: Size) -> Point:
        """The options it is reported with."""
        point = best(self.tuning(row)).point
        if size != self.large:
            return point
        losses = {lr: self.loss(trial) for lr, trial in zip(self._beside(row, point), self.rates(row), strict=True)}
        return {**point, "lr": min(losses, key=lambda lr: losses[lr])}

    def runs(self, row: Contender, size: Size) -> list[Trial]:
        """Those that are reported, one for each seed; a method without a rank has none at half of it."""
        point = self.point(row, size)
        return [trial_of(row, size, seed, point) for seed in self.seeds]

    def ablation(self, options: dict[str, Any], keys: dict[str, Any]) -> list[Trial]:
        """The tuned default with one key otherwise, one run for each seed."""
        row = self.row(ABLATED)
        point = self.point(row, self.small)
        return [trial_of(row, self.small, seed, {**point, **options}, keys) for seed in self.seeds]

    def followed(self) -> list[Contender]:
        """The peers, and the methods with the lowest mean loss at the small size."""
        means = {
            row.name: fmean(map(self.loss, self.runs(row, self.small)))
            for row in self.contenders
            if row.name not in PEERS
        }
        chosen = (*PEERS, *sorted(means, key=lambda name: means[name])[:FOLLOWED])
        return [row for row in self.contenders if row.name in chosen]

    def loss(self, trial: Trial) -> float:
        """Its final validation loss in nats per byte, infinite where it diverged."""
        value = self.record(trial)["val_loss"]
        return math.inf if value is None else float(value)

    def record(self, trial: Trial) -> dict[str, Any]:
        """Its run."""
        record = self.store.find(trial)
        if record is None:
            raise NotMade(trial)
        return record

    def _tuned(self, row: Contender, size: Size, point: Point) -> Trial:
        return trial_of(row, size, TUNING_SEED, point)

    @staticmethod
    def _beside(row: Contender, point: Point) -> tuple[float, ...]:
        return row.ladder("lr").neighbours(point["lr"])

    def _searched(self, row: Contender) -> Iterator[Trial]:
        """The trials of its tuning so far, and the next one."""
        made, lacking = self._search(row)
        yield from (self._tuned(row, self.small, one.point) for one in made)
        if lacking is not None:
            yield lacking

    def _search(self, row: Contender) -> tuple[list[Tried], Any]:
        return tried(row.start, row.ladders, lambda point: self.loss(self._tuned(row, self.small, point)))

"""What the runs of one contender at one size say, beside those of tuned AdamW on the same seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from lowrank_core.cli.study.contenders import Contender
from lowrank_core.cli.study.intervals import Interval, paired
from lowrank_core.cli.study.ladders import Point
from lowrank_core.cli.study.search import NotMade
from lowrank_core.cli.study.sizes import Size
from lowrank_core.cli.study.stages import PEERS, Study
from lowrank_core.cli.study.trial import Trial

BETTER, WORSE, NEITHER, UNKNOWN = "better", "worse", "no difference seen", "not measured yet"


@dataclass(frozen=True)
class Figures:
    """Losses in nats per byte, one for each seed, infinite where a run diverged; the peer's are of the same seeds."""

    losses: tuple[float, ...]
    peer: tuple[float, ...]
    steps_to_peer: float  # median over the seeds; infinite where most do not get there
    state_bytes: int
    peak_rss_bytes: int
    ratio: float  # of the state to the peer's

    @property
    def diverged(self) -> int:
        """Seeds on which it did."""
        return sum(math.isinf(loss) for loss in self.losses)

    @property
    def difference(self) -> Interval | None:
        """To the peer; None where a run diverged, or for one seed alone."""
        if len(self.losses) < 2 or not all(map(math.isfinite, (*self.losses, *self.peer))):
            return None
        return paired(self.losses, self.peer)


def figures(study: Study, trials: list[Trial], size: Size) -> Figures:
    """Of the runs `trials` beside the peer's at the same size.

    Raises:
      NotMade: a run is lacking.
    """
    peers = [study.record(trial) for trial in study.runs(study.row(PEERS[0]), size)]
    records = [study.record(trial) for trial in trials]
    reached = [_steps_to(one["val_curve"], _loss(peer)) for one, peer in zip(records, peers, strict=True)]
    return Figures(
        losses=tuple(map(_loss, records)),
        peer=tuple(map(_loss, peers)),
        steps_to_peer=median(reached),
        state_bytes=records[0]["state_bytes"],
        peak_rss_bytes=max(record["peak_rss_bytes"] for record in records),
        ratio=records[0]["state_bytes"] / peers[0]["state_bytes"],
    )


def of(study: Study, row: Contender, size: Size) -> Figures | None:
    """Those of `row`; None where a run is lacking."""
    try:
        return figures(study, study.runs(row, size), size)
    except NotMade:
        return None


def point_of(study: Study, row: Contender, size: Size) -> Point | None:
    """The options it is reported with; None where a run is lacking."""
    try:
        return study.point(row, size)
    except NotMade:
        return None


def state_bytes(study: Study, row: Contender, size: Size) -> int:
    """What its state holds there, in the first of its runs that was made; 0 if none was."""
    found = (study.store.find(trial) for trial in study.wanted_of(row, size))
    return next((int(record["state_bytes"]) for record in found if record is not None), 0)


def verdict(small: Figures | None, large: Figures | None) -> str:
    """Better or worse only where both intervals exclude zero, on the same side."""
    if small is None or large is None:
        return UNKNOWN
    if small.difference is None or large.difference is None:
        return WORSE if small.diverged or large.diverged else UNKNOWN
    both = small.difference.sign + large.difference.sign
    return {-2: BETTER, 2: WORSE}.get(both, NEITHER)


def mean(values: tuple[float, ...]) -> float:
    """Infinite if any is."""
    return fmean(values) if all(map(math.isfinite, values)) else math.inf


def _loss(record: dict[str, Any]) -> float:
    return math.inf if record["val_loss"] is None else float(record["val_loss"])


def _steps_to(curve: list[tuple[int, float | None]], target: float) -> float:
    """The step at which the line through a validation curve first comes down to `target`; infinite if it does not."""
    before: tuple[int, float] | None = None
    for step, loss in curve:
        if loss is None:
            return math.inf
        if loss <= target:
            if before is None:
                return float(step)
            return before[0] + (step - before[0]) * (before[1] - target) / (before[1] - loss)
        before = step, loss
    return math.inf

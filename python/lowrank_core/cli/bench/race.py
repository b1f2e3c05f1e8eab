"""Steps of many rivals beside each other: a few at a time, each time with fused AdamW and GaLore among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

from torch import Tensor

from lowrank_core.cli.bench.entry import Entry, Times, started
from lowrank_core.cli.bench.products import LISTED, products_of, taking
from lowrank_core.cli.bench.rivals import ADAMW, GALORE, Rival, gradients, search_always
from lowrank_core.cli.bench.shapes import Shapes
from lowrank_core.cli.bench.timing import Call, evicting, interleaved

TOGETHER = 4  # rivals whose weights and states are held at the same time, besides the two references
_SECONDS, _LEAST = 40.0, 3  # that a group may take for its rounds, after so many of them
_LONG = 2.0  # seconds of a first step after which the next one need not warm anything up
_REFRESHES = 3  # rounds of steps with a refresh, at least


@dataclass
class Race:
    """Measures rivals of one model; `tick` is called with the share of the work that is done since the last call."""

    shapes: Shapes
    rank: int
    rounds: int
    tick: Callable[[float], object]
    before: Call = field(default_factory=evicting)

    def run(self, rivals: Sequence[Rival]) -> list[Entry]:
        """All of `rivals`, AdamW and GaLore among them; in their order."""
        grads = gradients(self.shapes)
        references = [self._started(rival, grads) for rival in rivals if rival.name in (ADAMW, GALORE)]
        others = [rival for rival in rivals if rival.name not in (ADAMW, GALORE)]
        found = {entry.rival.name: entry for entry in references}
        for some in _groups(others):
            share = 0.9 * max(1, len(some)) / max(1, len(others)) / 3
            entries = [self._started(rival, grads, share / len(some)) for rival in some]
            self._between(references + entries, share)
            self._refreshes(references, entries, share)
            for entry in entries:
                entry.optimizer = None
            found |= {entry.rival.name: entry for entry in entries}
        self._refreshes(references, [found[GALORE]], 0.1)
        return [found[rival.name] for rival in rivals]

    def _started(self, rival: Rival, grads: Sequence[Tensor], share: float = 0.0) -> Entry:
        entry = started(rival, self.shapes, grads, self.rank, self.before)
        self.tick(share)
        return entry

    def _between(self, entries: list[Entry], share: float) -> None:
        calls = {entry.rival.name: entry.step() for entry in entries}
        for entry in entries:
            if entry.first_s < _LONG:
                entry.step()()  # a first step is not like the others
            if entry.rival.name in LISTED:
                calls[_products(entry)] = taking(products_of(entry.rival.name, self.shapes, self.rank))
        found = self._timed(calls, self.rounds, share)
        for entry in entries:
            entry.between += found[entry.rival.name]
            entry.products += found.get(_products(entry), [])

    def _refreshes(self, references: list[Entry], entries: list[Entry], share: float) -> None:
        """Of those of ours that look for subspaces, all weights at once."""
        searching = [entry for entry in entries if entry.rival.ours and search_always(entry.running)]
        if not searching:
            self.tick(share)
            return
        for entry in searching:
            entry.step()()
        calls = {entry.rival.name: entry.step() for entry in (*references, *searching)}
        found = self._timed(calls, max(_REFRESHES, self.rounds // 3), share)
        for entry in searching:
            entry.refresh += found[entry.rival.name]

    def _timed(self, calls: dict[str, Call], rounds: int, share: float) -> dict[str, list[Times]]:
        planned, done = rounds * len(calls), count()

        def after() -> None:
            next(done)
            self.tick(share / planned)

        found = interleaved(calls, rounds, seconds=_SECONDS, least=_LEAST, before=self.before, after=after)
        self.tick(share * (planned - next(done)) / planned)  # of rounds that there was no time for
        both = list(zip(found[ADAMW], found[GALORE], strict=True))
        return {
            name: [Times(own, *pair) for own, pair in zip(seconds, both, strict=True)]
            for name, seconds in found.items()
        }


def _products(entry: Entry) -> str:
    return f"products of {entry.rival.name}"


def _groups(rivals: Sequence[Rival]) -> list[list[Rival]]:
    """At least one, so that the references are measured too. Those that take many products are apart: beside them
    nobody finds anything in a cache."""
    apart = [[rival for rival in rivals if (rival.method in LISTED) is many] for many in (False, True)]
    return [some[i : i + TOGETHER] for some in apart for i in range(0, len(some), TOGETHER)] or [[]]

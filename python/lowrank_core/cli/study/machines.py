"""On which processors the runs were made, and which pairs of runs were made on two kinds."""

from __future__ import annotations

from collections import Counter
from typing import Any

from lowrank_core.cli.study.search import NotMade
from lowrank_core.cli.study.stages import PEERS, Study


def kinds(study: Study) -> str:
    """Every kind of processor with the number of runs that were made on it, the most first."""
    counts = Counter(map(kind_of, study.store.records()))
    return ", ".join(f"{count} on {kind}" for kind, count in sorted(counts.items(), key=lambda one: (-one[1], one[0])))


def pairs(study: Study) -> tuple[int, int]:
    """The pairs of a method's run and AdamW's on the same seed that are there, and how many are of two kinds."""
    total = mixed = 0
    for size in (study.small, study.large):
        for row in study.contenders:
            try:
                runs = zip(study.runs(row, size), study.runs(study.row(PEERS[0]), size), strict=True)
            except NotMade:
                continue
            for mine, peer in runs:
                found = [study.store.find(mine), study.store.find(peer)]
                if row.name != PEERS[0] and None not in found:
                    total, mixed = total + 1, mixed + (len({kind_of(one) for one in found if one}) > 1)
    return total, mixed


def kind_of(record: dict[str, Any]) -> str:
    """The processor of a run, as Linux names it."""
    return str(record["machine"]["cpu"])

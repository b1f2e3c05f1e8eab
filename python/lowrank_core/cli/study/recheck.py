"""After a change of sources: which runs would come out the same, to the bit, and so stand."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lowrank_core.cli.study.pool import finish
from lowrank_core.cli.study.store import Record, Store, decided_by, load, origin
from lowrank_core.cli.study.trial import Trial

Told = Callable[[str], None]
_ABLATED = ("moments", "moment_dtype")  # options that lead a method another way through the sources


def recheck(store: Store, *, stop: Callable[[], bool], tell: Told) -> None:
    """Of each optimizer whose sources have changed, repeats the cheapest run; adopts all if its losses are the same.

    The losses of every step and every validation are compared, by their digest. What differs is left as it is, and made
    again. Only runs of today's versions and text are looked at. `tell` gets a sentence for each optimizer.
    """
    groups = _changed(store)
    cheapest = {_cheapest(group): group for group in groups}
    with tempfile.TemporaryDirectory() as scratch:
        waiting = [Trial.from_json(load(store.folder / name)) for name in cheapest]

        def next_trial(taken: set[str]) -> Trial | None:
            return waiting.pop(0) if waiting else None

        for trial, made in finish(next_trial, decided_by, Path(scratch), over=stop, stop=stop):
            group = cheapest[f"{trial.name}.json"]
            if not made:
                tell(f"{trial.name} failed; its {len(group)} runs are made again")
                continue
            _judge(store, trial, load(Path(scratch, f"{trial.name}.json")), group, tell)


def _changed(store: Store) -> Iterator[list[Record]]:
    """Records that only other sources have made, by what leads through the sources, and by the sources."""
    found: dict[str, list[Record]] = defaultdict(list)
    for record in store.records():
        trial = Trial.from_json(record)
        now, then = decided_by(trial), record["decided_by"]
        if now != then and {**now, "sources": ""} == {**then, "sources": ""}:
            way = {key: record["options"].get(key) for key in _ABLATED}
            found[repr((trial.optimizer, trial.foreign, sorted(trial.keys), way, then["sources"]))].append(record)
    yield from found.values()


def _cheapest(group: list[Record]) -> str:
    """The name of the file of the run that took least, of the tuning seed if there is one."""
    first = min(group, key=lambda record: (record["seed"] != 0, record["cpu_seconds"]))
    return f"{Trial.from_json(first).name}.json"


def _judge(store: Store, trial: Trial, again: Record, group: list[Record], tell: Told) -> None:
    before: Record = load(store.path(trial))
    if again["losses_sha256"] != before["losses_sha256"]:
        tell(f"{trial.name} comes out otherwise: its {len(group)} runs are made again")
        return
    for record in group:
        now = decided_by(Trial.from_json(record))
        note: dict[str, Any] = {
            "from": record["decided_by"]["sources"], "to": now["sources"], "same_losses_of": trial.name,
            "commit": origin()["commit"], "date": again["date"],
        }  # fmt: skip
        adopted = {**record, "decided_by": now, "adopted": [*record.get("adopted", []), note]}
        store.write(Trial.from_json(record), adopted)
    tell(f"{trial.name} comes out the same to the bit: {len(group)} runs stand")

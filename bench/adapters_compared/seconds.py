"""Seconds of a step: at each place all take turns in one process, so that what else runs slows them alike."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from statistics import median
from typing import Any

import torch
from lowrank_core.cli.bench.timing import interleaved
from lowrank_core.cli.study.search import NotMade
from lowrank_core.cli.study.store import origin
from tqdm import tqdm

from adapters_compared.comparison import TUNING_SEED, Comparison
from adapters_compared.contenders import Contender
from adapters_compared.learn import build, step
from adapters_compared.places import TASKS, Place
from adapters_compared.runs import COMMAND

LEFT_OUT, STEPS, LONGEST = 3, 30, 60.0  # steps before, timed steps, and the seconds after which a place has enough


def measure(comparison: Comparison) -> dict[str, Any]:
    """Median seconds of a step by place and contender, with the options found so far, else the first ones."""
    found = {}
    for place in tqdm(comparison.places, unit="place", disable=None):
        calls = {row.name: _stepper(comparison, row, place) for row in comparison.at(place)}
        times = interleaved(calls, LEFT_OUT + STEPS, seconds=LONGEST, least=LEFT_OUT + 5)
        found[f"{place.task}, {place.batch}"] = {name: median(own[LEFT_OUT:]) for name, own in times.items()}
    facts = {**origin(), "command": f"{COMMAND} --time"}
    clock = (
        f"Seconds: `{facts['command']}`, up to {STEPS} interleaved steps, {torch.get_num_threads()} threads, "
        f"{facts['machine']['cpu']}, {facts['date'][:10]}."
    )
    return {**facts, "threads": torch.get_num_threads(), "clock": clock, "seconds": found}


def _stepper(comparison: Comparison, row: Contender, place: Place) -> Callable[[], object]:
    """A call that takes the next step."""
    try:
        point = comparison.point(row, place)
    except NotMade:
        point = row.point
    trial, task = comparison.trial(row, place, TUNING_SEED, point), TASKS[place.task]
    stream, model = task.stream(trial.seed), task.model(trial.seed).eval()
    optimizer, numbers = build(trial, task, model, stream), count()

    def call() -> None:
        begin = next(numbers) * trial.batch % (len(stream.targets) - trial.batch)
        at = slice(begin, begin + trial.batch)
        step(model, optimizer, [x[at] for x in stream.inputs], stream.targets[at], trial.method)

    return call

"""Seconds of a training step: all contenders take turns in one process, so that what else runs slows them alike."""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from lowrank_core.cli.config import TrainConfig
from lowrank_core.cli.files import write_atomic
from lowrank_core.cli.loop import Run
from lowrank_core.cli.metrics import MetricsLog
from lowrank_core.cli.resolve import resolve
from lowrank_core.cli.study.contenders import Contender, trial_of
from lowrank_core.cli.study.figures import point_of
from lowrank_core.cli.study.measure import builder
from lowrank_core.cli.study.page import SECONDS, read_seconds
from lowrank_core.cli.study.sizes import Size
from lowrank_core.cli.study.stages import Study
from lowrank_core.cli.study.store import origin
from lowrank_core.cli.text import Corpus, load_corpus
from lowrank_core.optim import LowRankOptimizer

LEFT_OUT = 3  # first steps: allocations, and the first search
STEPS = 40  # timed. Ours refresh in turns; one that refreshes all at once does so at least once in that many steps
_GAP = "update_proj_gap"


class Searches:
    """Counts the seconds that an optimizer's searches take (`optim.watch.Watch`)."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def searched(self, slots: Sequence[object], seconds: float) -> None:
        """Told by the optimizer."""
        self.seconds += seconds

    def turned(self, slot: object, overlap: object) -> None:
        """Told by the optimizer."""


def write_seconds(study: Study, size: Size, folder: Path, *, steps: int = STEPS) -> Path:
    """Times every contender at `size` with the options found so far, else its first ones; keeps what other sizes have.

    Raises:
      CliError: the file of seconds is damaged, or cannot be written.
    """
    known = read_seconds(folder)
    facts = {**origin(), "command": f"{origin()['command']} --time {size.name}"}
    about = {**facts, "threads": torch.get_num_threads(), "steps": steps}
    found = {
        "measured": {**known.get("measured", {}), size.name: about},
        "sizes": {**known.get("sizes", {}), size.name: seconds_of(study, size, steps)},
    }
    write_atomic(folder / SECONDS, (json.dumps(found, indent=1) + "\n").encode())
    return folder / SECONDS


def seconds_of(study: Study, size: Size, steps: int) -> dict[str, dict[str, float | None]]:
    """By contender: mean and median seconds of a step, and the share of all of them that searches took.

    The share is None where nobody tells: for AdamW, and for optimizers of other packages.
    """
    options = size.options()
    corpus = load_corpus((), val_fraction=options["val_fraction"], window=size.seq_len + 1)
    times: dict[str, list[float]] = {row.name: [] for row in study.contenders}
    with tempfile.TemporaryDirectory() as folder, MetricsLog(Path(folder, "metrics.jsonl")) as log:
        runs = {row.name: _run(study, row, size, steps, corpus, Path(folder)) for row in study.contenders}
        watches: dict[str, Searches] = {}
        for turn in tqdm(range(LEFT_OUT + steps), desc=size.name, unit="round", disable=None):
            if turn == LEFT_OUT:
                watches = _watched(runs)
            for name in random.sample(list(runs), len(runs)):
                began = time.perf_counter()
                runs[name].train_step(log)
                times[name].append(time.perf_counter() - began)
    return {name: _row(values[LEFT_OUT:], watches.get(name)) for name, values in times.items()}


def _run(study: Study, row: Contender, size: Size, steps: int, corpus: Corpus, folder: Path) -> Run:
    point = point_of(study, row, size) or point_of(study, row, study.small) or row.start
    if row.foreign is not None and _GAP in point:
        point = {**point, _GAP: min(point[_GAP], steps)}
    trial = trial_of(row, size, 0, point)
    config = resolve(TrainConfig.from_json({**trial.options, "seed": trial.seed}))
    return Run(trial.optimizer, config, corpus, folder, builder(trial))


def _watched(runs: dict[str, Run]) -> dict[str, Searches]:
    found = {}
    for name, run in runs.items():
        if isinstance(run.optimizer, LowRankOptimizer):
            found[name] = Searches()
            run.optimizer.watches = (*run.optimizer.watches, found[name])
    return found


def _row(values: list[float], watch: Searches | None) -> dict[str, float | None]:
    share = None if watch is None else watch.seconds / sum(values)
    return {"seconds_per_step": fmean(values), "median": median(values), "refresh_share": share}

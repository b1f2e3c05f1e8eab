"""Seconds of a training step of the command line: rivals take turns, so that a busy machine slows them alike."""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from lowrank_core.cli.config import TrainConfig
from lowrank_core.cli.loop import Run
from lowrank_core.cli.metrics import MetricsLog
from lowrank_core.cli.resolve import resolve
from lowrank_core.cli.text import load_corpus

LEFT_OUT = 5  # first steps: allocations, and a refresh that is not a warm one


def seconds(rivals: dict[str, dict[str, Any]], threads: int, steps: int) -> dict[str, Any]:
    """Wall-clock seconds of each rival's step, by name; `rivals` are options of `lowrank-core train`.

    `mean` counts everything, refreshes too; `beyond_median_share` is what they and other slow steps add to it.
    """
    torch.set_num_threads(threads)
    load = os.getloadavg()[0]
    if load > 1.0:
        print(f"other work is running (load average {load:.1f}): times are too long, ratios uncertain")
    times: dict[str, list[float]] = {name: [] for name in rivals}
    with tempfile.TemporaryDirectory() as folder, MetricsLog(Path(folder, "metrics.jsonl")) as log:
        runs = [_run(name, asked, Path(folder)) for name, asked in rivals.items()]
        for _ in range(LEFT_OUT + steps):
            for run in random.sample(runs, len(runs)):
                started = time.perf_counter()
                run.train_step(log)
                times[run.name].append(time.perf_counter() - started)
    rows = {name: _row(values[LEFT_OUT:]) for name, values in times.items()}
    for name, row in rows.items():
        print(f"{name:>8}  {row['mean']:.4f} s/step, median {row['median']:.4f}, quietest {row['lowest']:.4f}")
    return {"load_average": load, "seconds_per_step": rows}


def _run(name: str, asked: dict[str, Any], folder: Path) -> Run:
    config = resolve(TrainConfig.from_json(asked))
    return Run(name, config, load_corpus(config.text, val_fraction=config.val_fraction, window=config.window), folder)


def _row(values: list[float]) -> dict[str, float]:
    middle = median(values)
    return {
        "mean": fmean(values),
        "median": middle,
        "lowest": min(values),
        "highest": max(values),
        "beyond_median_share": 1 - middle / fmean(values),
    }

"""Makes one run of the comparison, on one thread."""

from __future__ import annotations

import hashlib
import json
import math
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from lowrank_core.cli.config import TrainConfig
from lowrank_core.cli.errors import CliError
from lowrank_core.cli.files import METRICS_FILE
from lowrank_core.cli.loop import Build, Run
from lowrank_core.cli.metrics import Line, MetricsLog, read
from lowrank_core.cli.optimizers import build_optimizer, subspaces
from lowrank_core.cli.resolve import resolve
from lowrank_core.cli.study.foreign import build_foreign, held_bytes
from lowrank_core.cli.study.trial import Trial
from lowrank_core.cli.text import load_corpus

CURVE_POINTS = 40  # kept of the training losses; of all of them a digest


def measure(trial: Trial) -> dict[str, Any]:
    """Trains on one thread and returns what came out, plain values for JSON.

    `val_loss` is the validation loss (nats per byte) after the last step, None where the run diverged; `cpu_seconds`
    says what the run took of the processor while other programs shared it, and is no measurement of speed.
    """
    torch.set_num_threads(1)
    began = time.process_time()
    config = resolve(TrainConfig.from_json({**trial.options, "seed": trial.seed}))
    corpus = load_corpus(config.text, val_fraction=config.val_fraction, window=config.window)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, METRICS_FILE)
        run = Run(trial.optimizer, config, corpus, Path(folder), builder(trial))
        with MetricsLog(path) as log:
            diverged = _train(run, log, config.steps, config.eval_every or config.steps)
        lines = list(read(path))
    result = {**_result(run, diverged), **_curves(lines, config.steps)}
    return {**result, "cpu_seconds": round(time.process_time() - began, 2)}


def builder(trial: Trial) -> Build:
    """What makes the trial's optimizer."""
    if trial.foreign is None:
        return lambda name, model, config: build_optimizer(name, model, config, **trial.keys)
    foreign = trial.foreign
    return lambda name, model, config: build_foreign(foreign, model, config, **trial.keys)


def _train(run: Run, log: MetricsLog, steps: int, eval_every: int) -> str | None:
    """To the end, or to the sentence of the step that diverged."""
    run.evaluate(log)
    try:
        while run.step < steps:
            run.train_step(log)
            if run.step % eval_every == 0 or run.step == steps:
                run.evaluate(log)
    except CliError as failure:
        if " diverged at step " not in str(failure):
            raise
        return str(failure)
    loss = run.progress["val_loss"]
    return None if math.isfinite(loss) else f"{run.name} diverged: its last validation loss is {loss}"


def _result(run: Run, diverged: str | None) -> dict[str, Any]:
    view = subspaces(run.optimizer)
    return {
        "diverged": diverged,
        "val_loss": None if diverged else run.progress["val_loss"],
        "state_bytes": held_bytes(run.optimizer),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "refreshes": view.get("refreshes"),
        "captured": view.get("captured"),
    }


def _curves(lines: list[Line], steps: int) -> dict[str, Any]:
    """Validation losses by step, some of the training losses, and the digest of all losses to the last bit."""
    val = [(line["step"], line["val_loss"]) for line in lines if line["event"] == "eval"]
    train = [(line["step"], line["train_loss"]) for line in lines if line["event"] == "train"]
    every = max(1, steps // CURVE_POINTS)
    return {
        "val_curve": val,
        "train_curve": [(step, loss) for step, loss in train if step % every == 0],
        "losses_sha256": hashlib.sha256(json.dumps([val, train]).encode()).hexdigest(),
    }
